//! Ways to order and to divide.

use flotilla_planner::Fleet;

/// Every way to put some of the devices into up to `stages_max` stages, one after the other. Devices of one host and of equal
/// numbers are taken in their order, since others would be the same plan.
pub fn orders(fleet: &Fleet, stages_max: usize) -> Vec<Vec<Vec<usize>>> {
    let mut classes: Vec<Vec<usize>> = Vec::new();
    for (device, inventory) in fleet.devices.iter().enumerate() {
        let same = |class: &&mut Vec<usize>| {
            let other = &fleet.devices[class[0]];
            fleet.hosts[class[0]] == fleet.hosts[device]
                && (other.memory_bytes, other.bandwidth) == (inventory.memory_bytes, inventory.bandwidth)
        };
        match classes.iter_mut().find(same) {
            Some(class) => class.push(device),
            None => classes.push(vec![device]),
        }
    }
    let mut found = Vec::new();
    extend(&classes, &mut vec![0; classes.len()], &mut Vec::new(), stages_max, &mut found);
    found
}

fn extend(
    classes: &[Vec<usize>],
    used: &mut Vec<usize>,
    stages: &mut Vec<Vec<usize>>,
    stages_max: usize,
    found: &mut Vec<Vec<Vec<usize>>>,
) {
    if !stages.is_empty() {
        found.push(stages.clone());
    }
    if stages.len() == stages_max {
        return;
    }
    let left: Vec<usize> = classes.iter().zip(used.iter()).map(|(class, used)| class.len() - used).collect();
    for taken in choices(&left).into_iter().filter(|taken| taken.iter().sum::<usize>() > 0) {
        let of = |class: usize| classes[class][used[class]..used[class] + taken[class]].to_vec();
        stages.push((0..classes.len()).flat_map(of).collect());
        used.iter_mut().zip(&taken).for_each(|(used, taken)| *used += taken);
        extend(classes, used, stages, stages_max, found);
        used.iter_mut().zip(&taken).for_each(|(used, taken)| *used -= taken);
        stages.pop();
    }
}

fn choices(most: &[usize]) -> Vec<Vec<usize>> {
    match most.split_last() {
        None => vec![vec![]],
        Some((last, others)) => {
            let with = |n: usize| move |other: Vec<usize>| [other, vec![n]].concat();
            (0..=*last).flat_map(|n| choices(others).into_iter().map(with(n))).collect()
        }
    }
}

/// Every way to write `sum` as so many numbers, zeros too.
pub fn compositions(sum: usize, parts: usize) -> Vec<Vec<usize>> {
    if parts == 1 {
        return vec![vec![sum]];
    }
    let with = |first: usize| move |rest: Vec<usize>| [vec![first], rest].concat();
    (0..=sum).flat_map(|first| compositions(sum - first, parts - 1).into_iter().map(with(first))).collect()
}
