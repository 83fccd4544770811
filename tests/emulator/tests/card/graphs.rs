//! Capture and replay, and what must not happen while a stream is captured.

use crate::support::card;
use cudarc::driver::sys::{CUgraphInstantiate_flags, CUresult, CUstreamCaptureMode, CUstreamCaptureStatus};
use cudarc::driver::{LaunchConfig, PushKernelArg};

const STEP: &str =
    "extern \"C\" __global__ void step(float* x, float add) { x[threadIdx.x] = x[threadIdx.x] * 2 + add; }";
const FOUR: LaunchConfig = LaunchConfig { grid_dim: (1, 1, 1), block_dim: (4, 1, 1), shared_mem_bytes: 0 };
const MODE: CUstreamCaptureMode = CUstreamCaptureMode::CU_STREAM_CAPTURE_MODE_THREAD_LOCAL;

#[test]
fn a_graph_replays_what_was_recorded_on_what_is_there_now() {
    let Some(card) = card() else { return };
    let kernel = card.kernel(STEP, "step");
    let mut x = card.stream.clone_htod(&[1.0f32; 4]).unwrap();
    let mut copy = card.stream.alloc_zeros::<f32>(4).unwrap();
    card.stream.synchronize().unwrap();
    card.stream.begin_capture(MODE).unwrap();
    let add = 1.0f32;
    for _ in 0..2 {
        // SAFETY: 4 values, 4 threads.
        unsafe { card.stream.launch_builder(&kernel).arg(&mut x).arg(&add).launch(FOUR) }.unwrap();
    }
    card.stream.memcpy_dtod(&x, &mut copy).unwrap();
    assert_eq!(card.stream.capture_status().unwrap(), CUstreamCaptureStatus::CU_STREAM_CAPTURE_STATUS_ACTIVE);
    let graph = card.stream.end_capture(CUgraphInstantiate_flags(0)).unwrap().expect("a graph");
    assert_eq!(card.stream.clone_dtoh(&x).unwrap(), [1.0; 4], "recording runs nothing");
    graph.launch().unwrap();
    assert_eq!(card.stream.clone_dtoh(&copy).unwrap(), [7.0; 4]); // ((1 · 2 + 1) · 2 + 1)
    card.stream.memcpy_htod(&[10.0f32; 4], &mut x).unwrap();
    graph.launch().unwrap();
    graph.launch().unwrap();
    assert_eq!(card.stream.clone_dtoh(&copy).unwrap(), [175.0; 4]); // 10 → 43 → 175
}

#[test]
fn waiting_or_allocating_while_capturing_spoils_the_capture() {
    let Some(card) = card() else { return };
    card.stream.begin_capture(MODE).unwrap();
    assert_eq!(card.stream.synchronize().unwrap_err().0, CUresult::CUDA_ERROR_STREAM_CAPTURE_UNSUPPORTED);
    let ended = card.stream.end_capture(CUgraphInstantiate_flags(0)).map(|_| ());
    assert_eq!(ended.unwrap_err().0, CUresult::CUDA_ERROR_STREAM_CAPTURE_INVALIDATED);

    card.stream.begin_capture(MODE).unwrap();
    // SAFETY: refused.
    let refused = unsafe { cudarc::driver::result::malloc_sync(16) }.unwrap_err();
    assert_eq!(refused.0, CUresult::CUDA_ERROR_STREAM_CAPTURE_UNSUPPORTED);
    assert!(card.stream.end_capture(CUgraphInstantiate_flags(0)).is_err());

    let ended = card.stream.end_capture(CUgraphInstantiate_flags(0)).map(|_| ());
    assert_eq!(ended.unwrap_err().0, CUresult::CUDA_ERROR_ILLEGAL_STATE);
    card.stream.synchronize().unwrap();
}

#[test]
fn a_stream_that_is_busy_says_so() {
    let Some(card) = card() else { return };
    let kernel = card.kernel(
        "#include \"intrinsics.cuh\"\nextern \"C\" __global__ void poll(const unsigned* flag) { while (load_acquire_system(flag) == 0) {} }",
        "poll",
    );
    // SAFETY: written before it is read.
    let mut host = unsafe { card.context.alloc_pinned::<u32>(1) }.unwrap();
    host.as_mut_slice().unwrap()[0] = 0;
    let address = host.as_ptr().unwrap() as u64;
    // SAFETY: the flag outlives the kernel: we wait for it below.
    unsafe { card.stream.launch_builder(&kernel).arg(&address).launch(FOUR) }.unwrap();
    let event = card.stream.record_event(None).unwrap();
    assert!(!event.is_complete());
    // SAFETY: one 32-bit store to memory that the kernel polls.
    unsafe { (address as *mut u32).write_volatile(1) };
    card.stream.synchronize().unwrap();
    assert!(event.is_complete());
}
