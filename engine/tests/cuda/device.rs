//! The card itself: its facts, its memory, compiling for it and the cache of what was compiled.

use crate::support::{TestCard, cards, kept_in};
use cudarc::driver::{LaunchConfig, PushKernelArg};
use flotilla_engine::cuda::measure;
use flotilla_engine::cuda::{Card, CudaError, Library, Source, card_count, driver_facts, found};
use std::fs;
use std::path::PathBuf;
use std::sync::atomic::{AtomicU32, Ordering};

#[test]
fn a_card_opens_and_tells_its_facts() {
    for TestCard { name, card } in cards() {
        let facts = card.facts();
        println!("{name}: {facts:?}");
        assert!(!facts.name.is_empty() && facts.ordinal == 0, "{facts:?}");
        assert!(facts.capability >= (7, 5), "{facts:?}");
        assert!(facts.multiprocessors > 0 && facts.memory_bytes > 0 && facts.l2_bytes > 0, "{facts:?}");
        // What Turing has.
        assert!(facts.shared_bytes_per_block_max >= 64 << 10, "{facts:?}");
        let free = card.memory_free_bytes().unwrap();
        assert!(free > 0 && free <= facts.memory_bytes, "{free} of {facts:?}");
        let driver = driver_facts().unwrap();
        assert!(driver.cuda.major >= 12 && driver.card_count == card_count().unwrap(), "{driver:?}");
        assert_eq!(found(Library::Driver).unwrap().path, driver.path);
        assert!(found(Library::Nvrtc).unwrap().version.major <= driver.cuda.major);
    }
}

#[test]
fn a_card_that_is_not_there_is_told_with_those_that_are() {
    cards();
    let told = Card::open(1000).unwrap_err().to_string();
    assert!(
        told.starts_with("there is no card 1000: the driver shows ") && told.contains("\nhint: "),
        "{told}"
    );
}

#[test]
fn what_is_copied_to_a_card_comes_back() {
    for TestCard { card, .. } in cards() {
        let values: Vec<f32> = (0..100_003).map(|i| i as f32 * 0.5 - 7.0).collect();
        let on_card = card.upload(&values).unwrap();
        assert_eq!(card.download(&on_card).unwrap(), values);
        let mut copied = card.zeros::<f32>(values.len()).unwrap();
        assert!(card.download(&copied).unwrap().iter().all(|value| value.to_bits() == 0));
        card.stream().memcpy_dtod(&on_card, &mut copied).unwrap();
        assert_eq!(card.download(&copied).unwrap(), values);
    }
}

#[test]
fn a_lack_of_memory_is_told_and_leaves_the_card_usable() {
    for TestCard { card, .. } in cards() {
        let wanted = card.facts().memory_bytes * 2;
        let error = card.zeros::<u8>(wanted as usize).unwrap_err();
        let CudaError::OutOfMemory { ordinal: 0, wanted_bytes, memory_bytes, .. } = error else {
            panic!("{error}");
        };
        assert_eq!((wanted_bytes, memory_bytes), (wanted, card.facts().memory_bytes));
        assert!(error.to_string().starts_with("card 0 has no room for "), "{error}");
        assert_eq!(card.download(&card.upload(&[1_u8, 2, 3]).unwrap()).unwrap(), [1, 2, 3]);
    }
}

/// A kernel that writes `ANSWER` into every element; `fresh` makes it one that nobody compiled before.
fn source(name: &'static str, answer: i64) -> Source {
    static COUNT: AtomicU32 = AtomicU32::new(0);
    let now = std::time::SystemTime::now().duration_since(std::time::UNIX_EPOCH).unwrap().as_nanos();
    let text = format!(
        "// {now} {} {}\n\
         #include \"intrinsics.cuh\"\n\
         extern \"C\" __global__ void answer(int* to, unsigned count) {{\n\
             unsigned at = blockIdx.x * blockDim.x + threadIdx.x;\n\
             if (at < count) to[at] = ANSWER + int(at);\n\
         }}\n",
        std::process::id(),
        COUNT.fetch_add(1, Ordering::Relaxed)
    );
    Source { name, text: text.leak(), defines: vec![("ANSWER", answer)] }
}

fn answer(card: &Card, source: &Source) -> i32 {
    const COUNT: u32 = 100;
    let kernel = card.compile(source).unwrap().kernel("answer").unwrap();
    let mut to = card.zeros::<i32>(COUNT as usize).unwrap();
    let shape = LaunchConfig { grid_dim: (2, 1, 1), block_dim: (64, 1, 1), shared_mem_bytes: 0 };
    let mut launch = card.stream().launch_builder(&kernel);
    launch.arg(&mut to).arg(&COUNT);
    // SAFETY: the kernel writes COUNT ints.
    unsafe { launch.launch(shape) }.unwrap();
    let values = card.download(&to).unwrap();
    assert!(values.windows(2).all(|pair| pair[1] == pair[0] + 1), "{values:?}");
    values[0]
}

/// The entries of the cache for sources of this name.
fn entries(name: &str) -> Vec<PathBuf> {
    let prefix = format!("{}-", name.strip_suffix(".cu").unwrap());
    let Ok(folder) = fs::read_dir(kept_in()) else { return vec![] };
    let paths = folder.map(|entry| entry.unwrap().path());
    paths.filter(|path| path.file_name().unwrap().to_str().unwrap().starts_with(&prefix)).collect()
}

fn forget(name: &str) {
    for entry in entries(name) {
        let _ = fs::remove_file(entry);
    }
}

#[test]
fn shapes_reach_the_kernel() {
    for TestCard { card, .. } in cards() {
        let mut source = source("shapes.cu", 7);
        assert_eq!(answer(&card, &source), 7);
        source.defines = vec![("ANSWER", -40)];
        assert_eq!(answer(&card, &source), -40, "the same text with another shape is another program");
        forget("shapes.cu");
    }
}

#[test]
fn what_was_compiled_is_kept_and_what_is_damaged_is_compiled_again() {
    for TestCard { card, .. } in cards() {
        forget("kept.cu");
        let (first, second) = (source("kept.cu", 1), source("kept.cu", 2));
        assert_eq!(answer(&card, &first), 1);
        let [entry] = &entries("kept.cu")[..] else { panic!("{:?}", entries("kept.cu")) };
        let whole = fs::read(entry).unwrap();
        assert_eq!(answer(&card, &second), 2);
        let [other] = &entries("kept.cu").into_iter().filter(|path| path != entry).collect::<Vec<_>>()[..]
        else {
            panic!("{:?}", entries("kept.cu"))
        };

        // Another program in its place is what comes out, so the entry is what is loaded.
        fs::copy(other, entry).unwrap();
        assert_eq!(answer(&card, &first), 2);

        for at in [0, whole.len() / 2, whole.len() - 1] {
            let mut damaged = whole.clone();
            damaged[at] ^= 0x40;
            fs::write(entry, &damaged).unwrap();
            assert_eq!(answer(&card, &first), 1, "byte {at} of {}", whole.len());
            assert_ne!(fs::read(entry).unwrap(), damaged, "the entry is replaced");
        }
        fs::write(entry, []).unwrap();
        assert_eq!(answer(&card, &first), 1, "an empty entry");
        forget("kept.cu");
    }
}

#[test]
fn a_mistake_in_a_kernel_is_told_with_its_line() {
    for TestCard { card, .. } in cards() {
        let text = "#include \"intrinsics.cuh\"\n\
                    extern \"C\" __global__ void broken(int* to) {\n\
                        to[0] = nowhere;\n\
                    }\n";
        let error = card.compile(&Source { name: "broken.cu", text, defines: vec![] }).unwrap_err();
        let CudaError::Compile { name: "broken.cu", arch, log } = &error else { panic!("{error}") };
        assert!(arch.starts_with("sm_"), "{arch}");
        assert!(log.contains("nowhere") && log.contains("  3 | to[0] = nowhere;"), "{log}");
        assert!(entries("broken.cu").is_empty());
    }
}

#[test]
fn a_kernel_that_is_not_there_is_told() {
    for TestCard { card, .. } in cards() {
        let module = card.compile(&source("names.cu", 0)).unwrap();
        let told = module.kernel("question").unwrap_err().to_string();
        assert!(told.starts_with("names.cu has no kernel `question`: "), "{told}");
        forget("names.cu");
    }
}

#[test]
fn several_threads_that_want_the_same_program_get_it() {
    for TestCard { card, .. } in cards() {
        forget("threads.cu");
        let source = source("threads.cu", 5);
        std::thread::scope(|scope| {
            for _ in 0..4 {
                scope.spawn(|| assert_eq!(answer(&card, &source), 5));
            }
        });
        assert_eq!(entries("threads.cu").len(), 1);
        forget("threads.cu");
    }
}

#[test]
fn a_card_is_measured() {
    for TestCard { card, .. } in cards() {
        let read = measure::read(&card).unwrap();
        assert!(read.bytes >= 1 << 20 && read.bytes_per_second() > 0.0, "{read:?}");
        let (to_card, to_host) = measure::host(&card).unwrap();
        for copies in [to_card, to_host] {
            assert!(
                copies.small.bytes < copies.large.bytes && copies.large.bytes_per_second() > 0.0,
                "{copies:?}"
            );
        }
        for other in (1..card_count().unwrap()).map(|ordinal| Card::open(ordinal).unwrap()) {
            let link = measure::link(&card, &other).unwrap();
            assert!(link.is_none_or(|link| link.copies.large.bytes_per_second() > 0.0), "{link:?}");
        }
    }
}

#[test]
fn nccl_is_spoken_to() {
    use flotilla_engine::cuda::{Nccl, nccl};
    cards();
    let library = match Nccl::open() {
        Ok(library) => library,
        // A machine with a card need not have it.
        Err(error @ CudaError::Missing { .. }) => return println!("skipped: {error}"),
        Err(error) => panic!("{error}"),
    };
    assert!((2, 18) <= (library.version().major, library.version().minor), "{}", library.version());
    let mut id = nccl::sys::ncclUniqueId { internal: [0; 128] };
    // SAFETY: the id is ours to write.
    let code = unsafe { (library.get_unique_id)(&mut id) };
    assert_eq!(code, nccl::SUCCESS, "{}", library.words(code));
    assert!(id.internal.iter().any(|byte| *byte != 0));
    assert!(!library.words(nccl::IN_PROGRESS).is_empty());
}
