//! Sets of nodes, by their slots: small where few nodes have something in common, bits where many do.

use fixedbitset::FixedBitSet;

/// The place of a node in the index. It is another node's once that one is gone.
pub(super) type Slot = usize;

/// The most slots that are kept as a list.
const FEW: usize = 32;

/// The slots that have something in common. Names that one node has, such as that of its host, cost little even
/// if there are many nodes.
#[derive(Clone, Debug)]
pub(super) enum Slots {
    Few(Vec<Slot>),
    Many(FixedBitSet),
}

impl Default for Slots {
    fn default() -> Self {
        Self::Few(Vec::new())
    }
}

impl Slots {
    pub(super) fn insert(&mut self, slot: Slot) {
        match self {
            Self::Few(list) if list.contains(&slot) => {}
            Self::Few(list) if list.len() < FEW => list.push(slot),
            Self::Few(list) => {
                let mut bits: FixedBitSet = list.iter().copied().collect();
                bits.grow_and_insert(slot);
                *self = Self::Many(bits);
            }
            Self::Many(bits) => bits.grow_and_insert(slot),
        }
    }

    pub(super) fn remove(&mut self, slot: Slot) {
        match self {
            Self::Few(list) => list.retain(|own| *own != slot),
            Self::Many(bits) if slot < bits.len() => bits.remove(slot),
            Self::Many(_) => {}
        }
    }

    pub(super) fn is_empty(&self) -> bool {
        match self {
            Self::Few(list) => list.is_empty(),
            Self::Many(bits) => bits.is_clear(),
        }
    }

    pub(super) fn contains(&self, slot: Slot) -> bool {
        match self {
            Self::Few(list) => list.contains(&slot),
            Self::Many(bits) => bits.contains(slot),
        }
    }

    /// Leaves in a set only what is here, too.
    pub(super) fn keep_in(&self, set: &mut FixedBitSet) {
        match self {
            Self::Few(list) => keep(set, list.iter().copied()),
            Self::Many(bits) => set.intersect_with(bits),
        }
    }

    /// Adds to a set what is here.
    pub(super) fn add_to(&self, set: &mut FixedBitSet) {
        match self {
            Self::Few(list) => list.iter().for_each(|slot| set.grow_and_insert(*slot)),
            Self::Many(bits) => set.union_with(bits),
        }
    }
}

/// Leaves in a set only what is in a list, too.
pub(super) fn keep(set: &mut FixedBitSet, list: impl Iterator<Item = Slot>) {
    let kept: Vec<Slot> = list.filter(|slot| set.contains(*slot)).collect();
    set.clear();
    kept.into_iter().for_each(|slot| set.insert(slot));
}

/// Leaves in a set only what passes.
pub(super) fn retain(set: &mut FixedBitSet, mut passes: impl FnMut(Slot) -> bool) {
    let bits_of_block = usize::BITS as usize;
    for (index, block) in set.as_mut_slice().iter_mut().enumerate() {
        let mut left = *block;
        while left != 0 {
            let bit = left.trailing_zeros();
            left &= left - 1;
            if !passes(index * bits_of_block + bit as usize) {
                *block &= !(1 << bit);
            }
        }
    }
}

/// The number of slots in a set.
pub(super) fn count(set: &FixedBitSet) -> usize {
    set.count_ones(..)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn set(slots: &[Slot]) -> FixedBitSet {
        let mut set = FixedBitSet::with_capacity(200);
        slots.iter().for_each(|slot| set.insert(*slot));
        set
    }

    fn slots(set: &FixedBitSet) -> Vec<Slot> {
        set.ones().collect()
    }

    /// A list that became bits behaves as it did.
    #[test]
    fn few_and_many_are_the_same() {
        for size in [0, 1, FEW, FEW + 1, 150] {
            let mut own = Slots::default();
            (0..size).for_each(|n| own.insert(n));
            (0..size).for_each(|n| own.insert(n));
            assert_eq!(own.is_empty(), size == 0);
            assert_eq!(matches!(own, Slots::Many(_)), size > FEW);
            let mut kept = set(&[0, 20, 40, 199]);
            own.keep_in(&mut kept);
            assert_eq!(slots(&kept), [0, 20, 40].into_iter().filter(|n| *n < size).collect::<Vec<_>>(), "{size}");
            let mut more = set(&[0, 199]);
            own.add_to(&mut more);
            assert_eq!(count(&more), size.max(1) + 1, "{size}");
            assert_eq!((own.contains(0), own.contains(1000)), (size > 0, false));
            (0..=200).for_each(|n| own.remove(n));
            assert!(own.is_empty(), "{size}");
        }
    }

    #[test]
    fn what_does_not_pass_is_taken_out() {
        let mut odd = set(&[0, 1, 63, 64, 65, 127, 128, 199]);
        retain(&mut odd, |slot| slot % 2 == 1);
        assert_eq!(slots(&odd), [1, 63, 65, 127, 199]);
    }
}
