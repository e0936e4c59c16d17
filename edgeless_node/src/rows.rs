//! The node's table of rows: where each component runs to which something here leads.
//!
//! A row lives as long as somebody needs it: the outputs that lead to its component, an instance of the
//! component that runs here, or what is forwarded for one that ran here.

use std::collections::HashMap;
use std::sync::atomic::{AtomicU64, AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError, Weak};
use std::time::{Duration, Instant};

use arc_swap::ArcSwap;
use edgeless_api::component::Row;
use edgeless_api::scale::PartitionBy;
use edgeless_api::{ComponentId, InstanceId, partition};
use tokio::sync::Notify;
use uuid::Uuid;

/// Time between two requests to start an instance of the same component.
pub const WAKE_AGAIN: Duration = Duration::from_millis(200);

/// What a row says.
#[derive(Debug)]
struct Places {
    epoch: u64,
    instances: Vec<InstanceId>,
    partition: Option<PartitionBy>,
    /// It runs nowhere because it is on its way to another place.
    is_moving: bool,
    /// The instances that it moves away from.
    left: Vec<InstanceId>,
}

impl Places {
    fn of(row: Row) -> Self {
        let partition = Some(row.partition_by.as_str()).filter(|text| !text.is_empty()).and_then(|text| {
            let rule = text.parse::<PartitionBy>();
            rule.inspect_err(|reason| {
                tracing::warn!(component = %row.component, text, reason, "the instances of a component take turns");
            })
            .ok()
        });
        let is_moving = row.moving && row.instances.is_empty();
        Self { epoch: row.epoch, instances: row.instances, partition, is_moving, left: Vec::new() }
    }

    /// Where it runs now, after these.
    fn after(before: &Self, row: Row) -> Self {
        let now = Self::of(row);
        let left = match now.is_moving {
            true if before.is_moving => before.left.clone(),
            true => before.instances.clone(),
            false => Vec::new(),
        };
        Self { left, ..now }
    }
}

/// How long something waits for a component that runs nowhere: a short time, unless the component is on its
/// way to another place.
#[derive(Clone, Copy, Debug)]
pub struct Patience {
    short: Duration,
    /// When the short time began, if the component is not on its way.
    since: Instant,
    /// The end, if it is.
    last: Instant,
    is_moving: bool,
}

impl Patience {
    /// From `now` on for a short time, or until `last` for what is on its way.
    pub fn new(now: Instant, short: Duration, last: Instant) -> Self {
        Self { short, since: now, last, is_moving: false }
    }

    /// When the wait is over, as things are now. What is not on its way any more gets the short time from
    /// then on.
    pub fn until(&mut self, now: Instant, is_moving: bool) -> Instant {
        let was_moving = std::mem::replace(&mut self.is_moving, is_moving);
        if is_moving {
            return self.last;
        }
        if was_moving {
            self.since = now;
        }
        self.since + self.short
    }
}

/// Where a component runs at present; shared by all that lead to it.
#[derive(Debug)]
pub struct RowCell {
    component: ComponentId,
    places: ArcSwap<Places>,
    next: AtomicUsize,
    changed: Notify,
    since: Instant,
    /// When an instance was asked for last, milliseconds after `since`, and one more; 0: never.
    asked: AtomicU64,
}

impl RowCell {
    fn new(row: Row) -> Arc<Self> {
        Arc::new(Self {
            component: row.component,
            places: ArcSwap::from_pointee(Places::of(row)),
            next: AtomicUsize::new(0),
            changed: Notify::new(),
            since: Instant::now(),
            asked: AtomicU64::new(0),
        })
    }

    /// The component.
    pub fn component(&self) -> ComponentId {
        self.component
    }

    /// The instance that gets the next event, from `source` and with this payload.
    pub fn pick(&self, source: InstanceId, payload: &[u8]) -> Option<InstanceId> {
        let places = self.places.load();
        match places.instances.as_slice() {
            [] => None,
            [only] => Some(*only),
            several => match &places.partition {
                Some(rule) => partition::pick(rule, several.iter(), source, payload),
                None => {
                    let turn = self.next.fetch_add(1, Ordering::Relaxed) % several.len();
                    several.get(turn).copied()
                }
            },
        }
    }

    /// The same, where it must not be one that is gone.
    pub fn pick_other(&self, gone: Uuid, source: InstanceId, payload: &[u8]) -> Option<InstanceId> {
        let places = self.places.load();
        let others = || places.instances.iter().filter(|instance| instance.function != gone);
        match &places.partition {
            Some(rule) => partition::pick(rule, others(), source, payload),
            None => {
                let count = others().count().max(1);
                others().nth(self.next.fetch_add(1, Ordering::Relaxed) % count).copied()
            }
        }
    }

    /// Whether the component runs nowhere because it is on its way to another place.
    pub fn is_moving(&self) -> bool {
        self.places.load().is_moving
    }

    /// Whether this is an instance that the component moves away from now.
    pub fn is_left(&self, instance: InstanceId) -> bool {
        self.places.load().left.contains(&instance)
    }

    /// Resolves when the row changes. What is waited for has to be looked at after this is made.
    pub fn changed(&self) -> tokio::sync::futures::Notified<'_> {
        self.changed.notified()
    }

    /// Whether the component runs nowhere, and an instance of it may be asked for: not again and again.
    pub fn wants_waking(&self, now: Instant) -> bool {
        if !self.places.load().instances.is_empty() {
            return false;
        }
        let now = u64::try_from(now.saturating_duration_since(self.since).as_millis()).unwrap_or(u64::MAX - 1) + 1;
        let last = self.asked.load(Ordering::Relaxed);
        let is_due = last == 0 || u128::from(now - last.min(now)) >= WAKE_AGAIN.as_millis();
        is_due && self.asked.compare_exchange(last, now, Ordering::Relaxed, Ordering::Relaxed).is_ok()
    }

    fn set(&self, row: Row) -> bool {
        let before = self.places.load();
        let is_news = row.epoch >= before.epoch;
        if is_news {
            self.places.store(Arc::new(Places::after(&before, row)));
            self.changed.notify_waiters();
        }
        is_news
    }
}

/// The rows that are needed.
#[derive(Debug, Default)]
pub struct Rows(Mutex<Table>);

#[derive(Debug, Default)]
struct Table {
    cells: HashMap<ComponentId, Weak<RowCell>>,
    /// So many are looked through for those that nobody needs any more.
    sweep_at: usize,
}

impl Table {
    fn find(&self, component: ComponentId) -> Option<Arc<RowCell>> {
        self.cells.get(&component).and_then(Weak::upgrade)
    }

    fn insert(&mut self, row: Row) -> Arc<RowCell> {
        if self.cells.len() >= self.sweep_at {
            self.cells.retain(|_, cell| cell.strong_count() > 0);
            self.sweep_at = 2 * self.cells.len() + 64;
        }
        let cell = RowCell::new(row);
        self.cells.insert(cell.component, Arc::downgrade(&cell));
        cell
    }
}

impl Rows {
    fn table(&self) -> MutexGuard<'_, Table> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// The row of a component; one that was not needed before says that it runs nowhere.
    pub fn of(&self, component: ComponentId) -> Arc<RowCell> {
        let mut table = self.table();
        table.find(component).unwrap_or_else(|| table.insert(Row::new(component, 0, Vec::new())))
    }

    /// Learns a row, and whether it was news. One older than the one known changes nothing.
    pub fn set(&self, row: Row) -> (Arc<RowCell>, bool) {
        let mut table = self.table();
        match table.find(row.component) {
            Some(cell) => {
                let is_news = cell.set(row);
                (cell, is_news)
            }
            None => (table.insert(row), true),
        }
    }

    /// Learns a row if anybody needs it. Whether it was news.
    pub fn update(&self, row: Row) -> bool {
        // Under the lock, so that of two rows the newer one stays.
        let table = self.table();
        table.find(row.component).is_some_and(|cell| cell.set(row))
    }

    /// Whether anybody needs the row of a component.
    pub fn is_needed(&self, component: ComponentId) -> bool {
        self.table().find(component).is_some()
    }

    /// Forgets all: whoever needs one of them from here on begins anew, with any epoch.
    pub fn clear(&self) {
        self.table().cells.clear();
    }
}

#[cfg(test)]
mod tests {
    use edgeless_api::NodeId;

    use super::*;

    fn instance() -> InstanceId {
        InstanceId::random(NodeId::random())
    }

    fn pick(cell: &RowCell) -> Option<InstanceId> {
        cell.pick(InstanceId::NONE, b"")
    }

    #[test]
    fn a_row_is_kept_while_it_is_needed_and_never_goes_back() {
        let (rows, component, one, two) = (Rows::default(), ComponentId::random(), instance(), instance());
        assert!(!rows.update(Row::new(component, 1, vec![one])), "nobody needs it");
        let cell = rows.of(component);
        assert_eq!(pick(&cell), None);
        assert!(rows.update(Row::new(component, 2, vec![two])));
        assert!(!rows.update(Row::new(component, 1, vec![one])), "older news");
        assert_eq!(pick(&rows.of(component)), Some(two));
        let (same, is_news) = rows.set(Row::new(component, 2, vec![one]));
        assert!(is_news && Arc::ptr_eq(&same, &cell));
        drop((cell, same));
        assert_eq!(pick(&rows.of(component)), None, "it was forgotten");
        let before = rows.of(component);
        rows.clear();
        assert!(!Arc::ptr_eq(&before, &rows.of(component)));
        for _ in 0..1000 {
            rows.of(ComponentId::random());
        }
        assert!(rows.table().cells.len() <= 130, "what nobody needs goes");
    }

    #[test]
    fn a_row_says_whether_its_component_is_on_its_way_and_what_it_leaves() {
        let (rows, component, old, new) = (Rows::default(), ComponentId::random(), instance(), instance());
        let moving = |epoch| Row { moving: true, ..Row::new(component, epoch, Vec::new()) };
        let (cell, _) = rows.set(Row::new(component, 1, vec![old]));
        assert!(!cell.is_moving() && !cell.is_left(old));
        for epoch in [2, 3] {
            rows.set(moving(epoch));
            assert!(cell.is_moving() && cell.is_left(old) && !cell.is_left(new));
        }
        rows.set(Row::new(component, 4, Vec::new()));
        assert!(!cell.is_moving() && !cell.is_left(old), "it found no place");
        rows.set(Row::new(component, 5, vec![new]));
        rows.set(moving(6));
        assert!(cell.is_left(new) && !cell.is_left(old));
        rows.set(Row { moving: true, ..Row::new(component, 7, vec![old]) });
        assert!(!cell.is_moving() && !cell.is_left(new), "it runs, whatever else the row says");
    }

    #[test]
    fn patience_is_long_only_for_what_is_on_its_way() {
        let [short, long, second] = [2, 30, 1].map(Duration::from_secs);
        let now = Instant::now();
        let mut patience = Patience::new(now, short, now + long);
        assert_eq!(patience.until(now, false), now + short);
        assert_eq!(patience.until(now + second, false), now + short, "it began when it began");
        assert_eq!(patience.until(now + second, true), now + long);
        assert_eq!(patience.until(now + 5 * second, true), now + long);
        assert_eq!(patience.until(now + 9 * second, false), now + 9 * second + short, "from then on");
        assert_eq!(patience.until(now + 10 * second, false), now + 9 * second + short);
        assert_eq!(patience.until(now + 10 * second, true), now + long, "however often it sets out");
    }

    #[test]
    fn instances_take_turns_or_keep_equal_events_together() {
        let (rows, component, all) = (Rows::default(), ComponentId::random(), [instance(), instance(), instance()]);
        let row = Row::new(component, 1, all.to_vec());
        let (cell, _) = rows.set(row.clone());
        assert_eq!([(); 4].map(|()| pick(&cell).unwrap()), [all[0], all[1], all[2], all[0]]);
        let others: std::collections::BTreeSet<_> =
            (0..4).map(|_| cell.pick_other(all[1].function, InstanceId::NONE, b"").unwrap()).collect();
        assert_eq!(others, [all[0], all[2]].into());
        rows.set(Row { partition_by: "payload".into(), ..row.clone() });
        let first = cell.pick(InstanceId::NONE, b"a").unwrap();
        assert!((0..10).all(|_| cell.pick(InstanceId::NONE, b"a") == Some(first)));
        assert_ne!(cell.pick_other(first.function, InstanceId::NONE, b"a"), Some(first));
        rows.set(Row { partition_by: "colour".into(), ..row });
        assert_ne!(pick(&cell), pick(&cell), "what is not understood is no reason to stop");
        rows.set(Row::new(component, 2, vec![all[0]]));
        assert_eq!(cell.pick_other(all[0].function, InstanceId::NONE, b""), None);
    }

    #[test]
    fn an_instance_is_asked_for_now_and_then() {
        let (rows, component) = (Rows::default(), ComponentId::random());
        let cell = rows.of(component);
        let now = Instant::now();
        assert!(cell.wants_waking(now));
        assert!(!cell.wants_waking(now + WAKE_AGAIN / 2), "it was asked for just now");
        assert!(cell.wants_waking(now + WAKE_AGAIN));
        rows.set(Row::new(component, 1, vec![instance()]));
        assert!(!cell.wants_waking(now + 2 * WAKE_AGAIN), "it runs");
    }
}
