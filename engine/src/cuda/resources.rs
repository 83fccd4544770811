//! What a kernel takes of a multiprocessor, as the assembler tells it: registers, shared memory, and what
//! did not fit into registers.

/// Of one kernel on one architecture.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Resources {
    pub kernel: String,
    pub registers: u32,
    /// Of fixed size; what a launch asks for comes on top.
    pub shared_bytes: u32,
    /// Local arrays that are indexed at run time, and what is spilled.
    pub stack_bytes: u32,
    /// Stored to memory for want of registers, and loaded again.
    pub spill_bytes: u32,
}

/// The log of `ptxas -v`: for each kernel a line that names it, one about its stack, one about the rest.
pub(super) fn parse(log: &str) -> Vec<Resources> {
    let mut found: Vec<Resources> = Vec::new();
    for line in log.lines() {
        if let Some((_, rest)) = line.split_once("Compiling entry function '") {
            let kernel = rest.split('\'').next().unwrap_or_default().to_owned();
            found.push(Resources { kernel, ..Resources::default() });
        } else if let Some(kernel) = found.last_mut() {
            kernel.read(line);
        }
    }
    found
}

impl Resources {
    fn read(&mut self, line: &str) {
        // "ptxas info    : Used 32 registers, used 1 barriers, 4 bytes smem"
        let before = |unit: &str| -> Option<u32> {
            line.split(unit)
                .next()
                .filter(|text| text.len() < line.len())?
                .split([' ', ','])
                .next_back()?
                .parse()
                .ok()
        };
        if line.contains("bytes stack frame") {
            self.stack_bytes = before(" bytes stack frame").unwrap_or(0);
            let spilled =
                before(" bytes spill stores").unwrap_or(0) + before(" bytes spill loads").unwrap_or(0);
            self.spill_bytes = spilled;
        } else if line.contains(" registers") {
            self.registers = before(" registers").unwrap_or(0);
            self.shared_bytes = before(" bytes smem").unwrap_or(0);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_log_of_two_kernels() {
        let log = "\
ptxas info    : 0 bytes gmem
ptxas info    : Compiling entry function 'spill' for 'sm_90'
ptxas info    : Function properties for spill
ptxas         .     248 bytes stack frame, 288 bytes spill stores, 296 bytes spill loads
ptxas info    : Used 64 registers, used 1 barriers, 248 bytes cumulative stack size
ptxas info    : Compile time = 140.290 ms
ptxas info    : Compiling entry function 'read_sum' for 'sm_90'
ptxas info    : Function properties for read_sum
ptxas         .     0 bytes stack frame, 0 bytes spill stores, 0 bytes spill loads
ptxas info    : Used 32 registers, used 1 barriers, 4 bytes smem";
        let spill = Resources {
            kernel: "spill".into(),
            registers: 64,
            shared_bytes: 0,
            stack_bytes: 248,
            spill_bytes: 584,
        };
        let sum =
            Resources { kernel: "read_sum".into(), registers: 32, shared_bytes: 4, ..Resources::default() };
        assert_eq!(parse(log), [spill, sum]);
        assert_eq!(parse(""), []);
    }
}
