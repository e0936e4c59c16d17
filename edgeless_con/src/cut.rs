//! Divides a workflow among domains so that the fewest of its edges lead from one domain to another.
//!
//! Pure: components and domains are numbers here, and the same problem and seed give the same answer.
//! A small problem is solved exactly, by branch and bound. A larger one is solved greedily from several
//! starts, and each solution improved by moving components for as long as that saves edges; moves
//! that cost something are tried as well, because they may make room for ones that save more.

use rand::SeedableRng;
use rand::rngs::StdRng;
use rand::seq::SliceRandom;

/// Up to so many components that may choose, the answer is the best there is.
pub const EXACT: usize = 12;
/// The most steps of an exact search; domains that are alike are not tried one after the other.
const STEPS: usize = 200_000;
/// How often a solution is built anew, in another order.
const STARTS: usize = 6;
/// Up to so many components, moves that cost something are tried as well.
const PATIENT: usize = 300;
/// The most rounds of improvement.
const PASSES: usize = 8;

/// What is to be divided.
#[derive(Clone, Copy, Debug)]
pub struct Problem<'a> {
    /// Who sends events to whom.
    pub edges: &'a [(usize, usize)],
    /// For each component, whether each domain may run it. One that has a place already may stay there only.
    pub allowed: &'a [Vec<bool>],
    /// The most components of each domain.
    pub most: &'a [usize],
}

/// How many edges lead from one domain to another.
pub fn crossings(edges: &[(usize, usize)], assignment: &[usize]) -> usize {
    edges.iter().filter(|(from, to)| assignment.get(*from) != assignment.get(*to)).count()
}

/// The domain of each component. `None`: no way was found that gives each a domain which may run it.
pub fn cut(problem: &Problem<'_>, seed: u64) -> Option<Vec<usize>> {
    let graph = Graph::of(problem)?;
    let mut rng = StdRng::seed_from_u64(seed);
    let mut best: Option<(usize, Vec<usize>)> = None;
    for _ in 0..STARTS {
        let Some(mut assignment) = graph.greedy(&mut rng) else { continue };
        graph.improve(&mut assignment);
        let cost = crossings(problem.edges, &assignment);
        if best.as_ref().is_none_or(|(least, _)| cost < *least) {
            best = Some((cost, assignment));
        }
        if graph.size() > PATIENT {
            break;
        }
    }
    if graph.choosers() <= EXACT {
        return graph.exact(best);
    }
    best.map(|(_, assignment)| assignment)
}

/// A problem with what is looked up again and again.
struct Graph<'a> {
    problem: &'a Problem<'a>,
    /// Of each component, those that it has edges with; one that sends and receives comes twice.
    neighbours: Vec<Vec<usize>>,
    /// Of each component, the domains that may run it.
    choices: Vec<Vec<usize>>,
    /// Of each domain, the first one that is like it in everything.
    alike: Vec<usize>,
}

const NOWHERE: usize = usize::MAX;

impl<'a> Graph<'a> {
    /// `None`: some component fits nowhere.
    fn of(problem: &'a Problem<'a>) -> Option<Self> {
        let mut neighbours = vec![Vec::new(); problem.allowed.len()];
        for (from, to) in problem.edges.iter().filter(|(from, to)| from != to) {
            neighbours.get_mut(*from)?.push(*to);
            neighbours.get_mut(*to)?.push(*from);
        }
        let domains = problem.most.len();
        let choices = |row: &Vec<bool>| -> Vec<usize> {
            (0..domains).filter(|domain| row.get(*domain).copied().unwrap_or(false)).collect()
        };
        let choices: Vec<_> = problem.allowed.iter().map(choices).collect();
        if choices.iter().any(Vec::is_empty) {
            return None;
        }
        let column = |domain: usize| {
            let allowed = problem.allowed.iter().map(move |row| row.get(domain).copied().unwrap_or(false));
            (problem.most.get(domain).copied(), allowed.collect::<Vec<_>>())
        };
        let mut first = std::collections::HashMap::new();
        let alike = (0..domains).map(|domain| *first.entry(column(domain)).or_insert(domain)).collect();
        Some(Self { problem, neighbours, choices, alike })
    }

    fn size(&self) -> usize {
        self.choices.len()
    }

    /// How many components have more than one domain to choose from.
    fn choosers(&self) -> usize {
        self.choices.iter().filter(|choices| choices.len() > 1).count()
    }

    fn most(&self, domain: usize) -> usize {
        self.problem.most.get(domain).copied().unwrap_or(0)
    }

    fn of_component(table: &[Vec<usize>], component: usize) -> &[usize] {
        table.get(component).map_or(&[], Vec::as_slice)
    }

    /// How many neighbours of a component are in a domain.
    fn pull(&self, assignment: &[usize], component: usize, domain: usize) -> usize {
        let neighbours = Self::of_component(&self.neighbours, component).iter();
        neighbours.filter(|other| assignment.get(**other) == Some(&domain)).count()
    }

    /// Gives one component after the other the domain where most of its neighbours are.
    fn greedy(&self, rng: &mut StdRng) -> Option<Vec<usize>> {
        // A domain that could run many is likely to be the right one for those that could run anywhere.
        let mut popularity = vec![0usize; self.problem.most.len()];
        for domain in self.choices.iter().flatten() {
            if let Some(count) = popularity.get_mut(*domain) {
                *count += 1;
            }
        }
        let mut order: Vec<usize> = (0..self.size()).collect();
        order.shuffle(rng);
        order.sort_by_key(|component| Self::of_component(&self.choices, *component).len().min(2));
        let mut assignment = vec![NOWHERE; self.size()];
        let mut load = vec![0usize; self.problem.most.len()];
        for component in self.connected(order) {
            let has_room = |domain: &&usize| load.get(**domain).is_some_and(|load| *load < self.most(**domain));
            let choices = Self::of_component(&self.choices, component).iter().filter(has_room);
            let domain = *choices.max_by_key(|domain| {
                let is_used = load.get(**domain).is_some_and(|load| *load > 0);
                let popular = popularity.get(**domain).copied().unwrap_or(0);
                (self.pull(&assignment, component, **domain), is_used, popular, std::cmp::Reverse(**domain))
            })?;
            *load.get_mut(domain)? += 1;
            *assignment.get_mut(component)? = domain;
        }
        Some(assignment)
    }

    /// Those without a choice first, then always the neighbours of those that came before.
    fn connected(&self, order: Vec<usize>) -> Vec<usize> {
        let mut seen = vec![false; self.size()];
        let mut sorted = Vec::with_capacity(order.len());
        let is_bound = |component: &usize| Self::of_component(&self.choices, *component).len() < 2;
        let mut queue: std::collections::VecDeque<usize> = order.iter().copied().filter(is_bound).collect();
        let mut rest = order.into_iter();
        loop {
            let Some(component) = queue.pop_front().or_else(|| rest.next()) else { return sorted };
            let Some(seen) = seen.get_mut(component).filter(|seen| !**seen) else { continue };
            *seen = true;
            sorted.push(component);
            queue.extend(Self::of_component(&self.neighbours, component));
        }
    }

    fn improve(&self, assignment: &mut [usize]) {
        for _ in 0..PASSES {
            let saved =
                if self.size() <= PATIENT { self.patient_pass(assignment) } else { self.hasty_pass(assignment) };
            if saved == 0 {
                return;
            }
        }
    }

    fn loads(&self, assignment: &[usize]) -> Vec<usize> {
        let mut load = vec![0usize; self.problem.most.len()];
        for domain in assignment {
            if let Some(load) = load.get_mut(*domain) {
                *load += 1;
            }
        }
        load
    }

    /// The best that a component can do: the domain to go to, and how many edges that saves.
    fn best_move(&self, assignment: &[usize], load: &[usize], component: usize) -> Option<(isize, usize)> {
        let home = *assignment.get(component)?;
        let here = self.pull(assignment, component, home);
        let mut best: Option<(isize, usize)> = None;
        for domain in Self::of_component(&self.choices, component) {
            if *domain == home || load.get(*domain).is_none_or(|load| *load >= self.most(*domain)) {
                continue;
            }
            let gain = self.pull(assignment, component, *domain).cast_signed() - here.cast_signed();
            if best.is_none_or(|(most, _)| gain > most) {
                best = Some((gain, *domain));
            }
        }
        best
    }

    fn relocate(assignment: &mut [usize], load: &mut [usize], component: usize, domain: usize) {
        let Some(home) = assignment.get_mut(component) else { return };
        if let Some(load) = load.get_mut(*home) {
            *load = load.saturating_sub(1);
        }
        if let Some(load) = load.get_mut(domain) {
            *load += 1;
        }
        *home = domain;
    }

    /// Moves each component once, the best move first even if it costs something, and keeps the best of the
    /// states that this leads through. How many edges that saved.
    fn patient_pass(&self, assignment: &mut [usize]) -> isize {
        let mut load = self.loads(assignment);
        let mut state = assignment.to_vec();
        let mut is_moved = vec![false; self.size()];
        let (mut saved, mut most) = (0isize, 0isize);
        for _ in 0..self.size() {
            let free = (0..self.size()).filter(|component| !is_moved.get(*component).copied().unwrap_or(true));
            let moves = free.filter_map(|own| self.best_move(&state, &load, own).map(|(gain, to)| (gain, own, to)));
            let Some((gain, component, domain)) = moves.max_by_key(|(gain, own, _)| (*gain, std::cmp::Reverse(*own)))
            else {
                break;
            };
            Self::relocate(&mut state, &mut load, component, domain);
            if let Some(is_moved) = is_moved.get_mut(component) {
                *is_moved = true;
            }
            saved += gain;
            if saved > most {
                most = saved;
                assignment.copy_from_slice(&state);
            }
        }
        most
    }

    /// Moves each component that saves something by it.
    fn hasty_pass(&self, assignment: &mut [usize]) -> isize {
        let mut load = self.loads(assignment);
        let mut saved = 0;
        for component in 0..self.size() {
            if let Some((gain, domain)) = self.best_move(assignment, &load, component).filter(|(gain, _)| *gain > 0) {
                Self::relocate(assignment, &mut load, component, domain);
                saved += gain;
            }
        }
        saved
    }

    /// The best of all solutions, `known` being one.
    fn exact(&self, known: Option<(usize, Vec<usize>)>) -> Option<Vec<usize>> {
        let order = self.connected((0..self.size()).collect());
        let mut search = Exact {
            graph: self,
            order,
            assignment: vec![NOWHERE; self.size()],
            load: vec![0; self.problem.most.len()],
            best: known,
            steps: 0,
        };
        search.descend(0, 0);
        search.best.map(|(_, assignment)| assignment)
    }
}

struct Exact<'a> {
    graph: &'a Graph<'a>,
    order: Vec<usize>,
    assignment: Vec<usize>,
    load: Vec<usize>,
    best: Option<(usize, Vec<usize>)>,
    steps: usize,
}

impl Exact<'_> {
    fn descend(&mut self, depth: usize, cost: usize) {
        self.steps += 1;
        if self.steps > STEPS || self.best.as_ref().is_some_and(|(least, _)| cost >= *least) {
            return;
        }
        let Some(component) = self.order.get(depth).copied() else {
            self.best = Some((cost, self.assignment.clone()));
            return;
        };
        let neighbours = Graph::of_component(&self.graph.neighbours, component);
        let settled = |other: &&usize| self.assignment.get(**other).is_some_and(|domain| *domain != NOWHERE);
        let settled = neighbours.iter().filter(settled).count();
        let mut options: Vec<(usize, usize)> = Vec::new();
        let mut empty = std::collections::BTreeSet::new();
        for domain in Graph::of_component(&self.graph.choices, component) {
            let Some(load) = self.load.get(*domain).copied().filter(|load| *load < self.graph.most(*domain)) else {
                continue;
            };
            // Of domains that are alike and not in use, one is as good as another.
            if load == 0 && !empty.insert(self.graph.alike.get(*domain).copied()) {
                continue;
            }
            options.push((settled - self.graph.pull(&self.assignment, component, *domain), *domain));
        }
        options.sort_unstable();
        for (more, domain) in options {
            if let (Some(place), Some(load)) = (self.assignment.get_mut(component), self.load.get_mut(domain)) {
                *place = domain;
                *load += 1;
            }
            self.descend(depth + 1, cost + more);
            if let (Some(place), Some(load)) = (self.assignment.get_mut(component), self.load.get_mut(domain)) {
                *place = NOWHERE;
                *load -= 1;
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use rand::RngExt;

    use super::*;

    struct Case {
        edges: Vec<(usize, usize)>,
        allowed: Vec<Vec<bool>>,
        most: Vec<usize>,
    }

    impl Case {
        fn random(rng: &mut StdRng, components: usize, domains: usize) -> Self {
            let edges = (0..rng.random_range(0..components * 2))
                .map(|_| (rng.random_range(0..components), rng.random_range(0..components)))
                .collect();
            let allowed = (0..components).map(|_| (0..domains).map(|_| rng.random_bool(0.6)).collect()).collect();
            let most = (0..domains)
                .map(|_| if rng.random_bool(0.3) { rng.random_range(1..=components) } else { usize::MAX })
                .collect();
            Self { edges, allowed, most }
        }

        fn problem(&self) -> Problem<'_> {
            Problem { edges: &self.edges, allowed: &self.allowed, most: &self.most }
        }

        fn is_feasible(&self, assignment: &[usize]) -> bool {
            let fits = assignment.iter().enumerate().all(|(component, domain)| self.allowed[component][*domain]);
            let count = |domain| assignment.iter().filter(|own| **own == domain).count();
            fits && (0..self.most.len()).all(|domain| count(domain) <= self.most[domain])
        }

        /// The fewest edges that any division crosses.
        fn brute(&self) -> Option<usize> {
            let (components, domains) = (self.allowed.len(), self.most.len());
            let all = 0..domains.pow(u32::try_from(components).unwrap());
            let decode = |mut code: usize| {
                let digits = (0..components).map(|_| {
                    let digit = code % domains;
                    code /= domains;
                    digit
                });
                digits.collect::<Vec<_>>()
            };
            let feasible = all.map(decode).filter(|assignment| self.is_feasible(assignment));
            feasible.map(|assignment| crossings(&self.edges, &assignment)).min()
        }
    }

    #[test]
    fn a_small_problem_is_solved_as_well_as_it_can_be() {
        let mut rng = StdRng::seed_from_u64(5);
        for round in 0..400 {
            let (components, domains) = (rng.random_range(1..=6), rng.random_range(1..=4));
            let case = Case::random(&mut rng, components, domains);
            let found = cut(&case.problem(), round);
            let least = found.as_ref().map(|assignment| {
                assert!(case.is_feasible(assignment), "round {round}: {assignment:?}");
                crossings(&case.edges, assignment)
            });
            assert_eq!(least, case.brute(), "round {round}");
            assert_eq!(found, cut(&case.problem(), round), "the same seed");
        }
    }

    #[test]
    fn a_large_problem_is_solved_well() {
        // Ten clusters of ten that talk among themselves, with a chain between them; one of each cluster is bound.
        let (clusters, each) = (10, 10);
        let mut edges = Vec::new();
        let mut allowed = vec![vec![true; clusters]; clusters * each];
        for cluster in 0..clusters {
            for one in 0..each {
                for other in 0..one {
                    edges.push((cluster * each + one, cluster * each + other));
                }
            }
            allowed[cluster * each] = (0..clusters).map(|domain| domain == cluster).collect();
            if cluster > 0 {
                edges.push(((cluster - 1) * each + 5, cluster * each + 6));
            }
        }
        let case = Case { edges, allowed, most: vec![usize::MAX; clusters] };
        let assignment = cut(&case.problem(), 1).unwrap();
        assert!(case.is_feasible(&assignment));
        assert_eq!(crossings(&case.edges, &assignment), clusters - 1);
    }

    #[test]
    fn what_fits_nowhere_has_no_division_and_what_could_stay_whole_stays_whole() {
        let case = |allowed: Vec<Vec<bool>>| Case { edges: vec![(0, 1)], allowed, most: vec![9, 9] };
        assert_eq!(cut(&case(vec![vec![false, false], vec![true, true]]).problem(), 1), None);
        assert_eq!(cut(&case(vec![vec![true, true], vec![false, true]]).problem(), 1), Some(vec![1, 1]));
        let full = Case { edges: vec![(0, 1)], allowed: vec![vec![true; 2]; 2], most: vec![1, 0] };
        assert_eq!(cut(&full.problem(), 1), None);
    }

    #[test]
    fn many_components_and_domains_take_a_short_time() {
        let mut rng = StdRng::seed_from_u64(3);
        let case = Case {
            edges: (0..10_000).map(|_| (rng.random_range(0..5_000), rng.random_range(0..5_000))).collect(),
            allowed: (0..5_000).map(|_| (0..20).map(|_| rng.random_bool(0.5)).collect()).collect(),
            most: vec![usize::MAX; 20],
        };
        assert!(case.is_feasible(&cut(&case.problem(), 1).unwrap()));
        let few = Case { edges: vec![(0, 1), (1, 2)], allowed: vec![vec![true; 900]; 3], most: vec![1; 900] };
        assert!(few.is_feasible(&cut(&few.problem(), 1).unwrap()), "domains that are alike");
    }
}
