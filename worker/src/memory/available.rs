//! Memory that this process may take: a container, or a unit of systemd, may have a limit of its own.

use std::path::Path;

/// Bytes of memory that can be taken without swapping, or being ended for it; nothing where the system does not say.
pub fn memory_available() -> Option<u64> {
    let groups = std::fs::read_to_string("/proc/self/cgroup").unwrap_or_default();
    let left = memory_left(&groups, Path::new("/sys/fs/cgroup"));
    memory_free().into_iter().chain(left).min()
}

fn memory_free() -> Option<u64> {
    let meminfo = std::fs::read_to_string("/proc/meminfo").ok()?;
    let line = meminfo.lines().find_map(|line| line.strip_prefix("MemAvailable:"))?;
    let kib: u64 = line.trim().strip_suffix("kB")?.trim().parse().ok()?;
    Some(kib * 1024)
}

/// What the control groups of this process leave it: the narrowest of its own and those above. `groups` is
/// /proc/self/cgroup, of which version 2 has the line `0::/PATH`; `root` is where they lie.
fn memory_left(groups: &str, root: &Path) -> Option<u64> {
    let path = groups.lines().find_map(|line| line.strip_prefix("0::/"))?;
    let own = root.join(path);
    own.ancestors().take_while(|dir| dir.starts_with(root)).filter_map(left_of).min()
}

/// The limit, less what is taken and not given back by the system when it is needed.
fn left_of(group: &Path) -> Option<u64> {
    let text = |file: &str| std::fs::read_to_string(group.join(file)).ok();
    let number = |file: &str| text(file)?.trim().parse::<u64>().ok();
    let (limit, taken) = (number("memory.max")?, number("memory.current")?);
    let kept_files = text("memory.stat")?
        .lines()
        .find_map(|line| line.strip_prefix("inactive_file ")?.parse::<u64>().ok())
        .unwrap_or(0);
    Some(limit.saturating_sub(taken.saturating_sub(kept_files)))
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::fs;

    /// A control group as the kernel shows it.
    fn group(dir: &Path, limit: &str, taken: u64, inactive_file: u64) {
        fs::create_dir_all(dir).unwrap();
        fs::write(dir.join("memory.max"), format!("{limit}\n")).unwrap();
        fs::write(dir.join("memory.current"), format!("{taken}\n")).unwrap();
        fs::write(dir.join("memory.stat"), format!("anon 5\ninactive_file {inactive_file}\n")).unwrap();
    }

    #[test]
    fn a_container_offers_what_its_limit_leaves() {
        let root = tempfile::tempdir().unwrap();
        // In a container its own group is the root that it sees.
        group(root.path(), "1000", 300, 100);
        assert_eq!(memory_left("0::/\n", root.path()), Some(800));
        // A group without a limit, in one with a limit, beside files of version 1.
        let (unit, slice) = (root.path().join("s.slice/u.service"), root.path().join("s.slice"));
        group(&unit, "max", 50, 0);
        group(&slice, "500", 60, 0);
        assert_eq!(memory_left("1:cpu:/x\n0::/s.slice/u.service\n", root.path()), Some(440));
        group(&slice, "500", 600, 0);
        assert_eq!(memory_left("0::/s.slice/u.service", root.path()), Some(0));
    }

    #[test]
    fn where_nothing_is_limited_nothing_is_said() {
        let root = tempfile::tempdir().unwrap();
        group(root.path(), "max", 300, 100);
        for groups in ["0::/\n", "0::/gone\n", "2:memory:/x\n", ""] {
            assert_eq!(memory_left(groups, root.path()), None, "{groups:?}");
        }
    }
}
