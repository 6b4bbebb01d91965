//! What the kernel knows of a process: the processor time it took and the memory it holds.

use std::time::Duration;

/// The kernel counts processor time in these.
const TICK: Duration = Duration::from_millis(10);

/// Processor time of all threads so far, user and system, to 10 ms.
pub fn cpu(pid: u32) -> Duration {
    let stat = std::fs::read_to_string(format!("/proc/{pid}/stat")).expect("the process runs");
    // The second field is a name in parentheses, which may hold spaces.
    let fields: Vec<&str> = stat
        .rsplit_once(')')
        .expect("a name")
        .1
        .split_whitespace()
        .collect();
    let ticks: u32 = [11, 12]
        .map(|field: usize| fields[field].parse::<u32>().unwrap())
        .iter()
        .sum();
    TICK * ticks
}

/// Resident memory, in KiB.
pub fn resident_kib(pid: u32) -> u64 {
    let status = std::fs::read_to_string(format!("/proc/{pid}/status")).expect("the process runs");
    let line = status
        .lines()
        .find(|line| line.starts_with("VmRSS:"))
        .expect("a size");
    line.split_whitespace().nth(1).unwrap().parse().unwrap()
}
