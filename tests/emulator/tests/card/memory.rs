//! Buffers: their ends, their first contents, their sum.

use crate::support::{Card, card, compile};
use cudarc::driver::{LaunchConfig, PushKernelArg, sys::CUresult};
use cudarc::nvrtc::Ptx;

const ONE: LaunchConfig = LaunchConfig { grid_dim: (1, 1, 1), block_dim: (1, 1, 1), shared_mem_bytes: 0 };

fn read_at(card: &Card, buffer_len: usize, at: i64) -> Result<f32, String> {
    let kernel = card.kernel(
        "extern \"C\" __global__ void read_one(float* out, const float* in, long long at) { out[0] = in[at]; }",
        "read_one",
    );
    let input = card.stream.alloc_zeros::<f32>(buffer_len).unwrap();
    let mut out = card.stream.alloc_zeros::<f32>(1).unwrap();
    // SAFETY: a read past the buffer is what the emulated card must notice.
    unsafe { card.stream.launch_builder(&kernel).arg(&mut out).arg(&input).arg(&at).launch(ONE) }.unwrap();
    match card.stream.synchronize() {
        Ok(()) => Ok(card.stream.clone_dtoh(&out).unwrap()[0]),
        Err(error) => {
            assert_eq!(error.0, CUresult::CUDA_ERROR_ILLEGAL_ADDRESS);
            Err(card.report())
        }
    }
}

#[test]
fn a_read_past_the_end_of_a_buffer_is_stopped_and_named() {
    let Some(card) = card() else { return };
    assert_eq!(read_at(&card, 100, 99), Ok(0.0));
    let report = read_at(&card, 100, 100).unwrap_err();
    assert!(report.contains("kernel read_one, block (0, 0, 0), thread (0, 0, 0)"), "{report}");
    assert!(report.contains("0 bytes past the end of a buffer of 400 bytes"), "{report}");
    // The stream is lost, the card is not.
    let Some(card) = crate::support::card() else { return };
    assert_eq!(read_at(&card, 100, 0), Ok(0.0));
}

/// Launches a kernel of one pointer and one number with one thread and 32 bytes of dynamic shared memory.
fn report_of(source: &str, name: &str, number: i32) -> Option<String> {
    let card = card()?;
    let kernel = card.kernel(source, name);
    let mut out = card.stream.alloc_zeros::<f32>(1).unwrap();
    let config = LaunchConfig { shared_mem_bytes: 32, ..ONE };
    // SAFETY: what the kernel does wrong, the emulated card must notice.
    unsafe { card.stream.launch_builder(&kernel).arg(&mut out).arg(&number).launch(config) }.unwrap();
    let (_, report) = card.failure();
    assert!(report.contains(name), "{report}");
    Some(report)
}

#[test]
fn a_stack_that_overflows_is_a_failed_launch() {
    let source = "extern \"C\" __global__ void deep(float* out, int n) {
        volatile float much[16384];
        for (int i = n - 1; i >= 0; i--) much[i] = i;
        out[0] = much[n / 2];
    }";
    let Some(report) = report_of(source, "deep", 16384) else { return };
    assert!(report.contains("needs more than the 64 KB of stack"), "{report}");
}

#[test]
fn a_write_past_the_dynamic_shared_memory_is_named() {
    let source = "#include \"intrinsics.cuh\"
    extern \"C\" __global__ void spill(float* out, int at) { DYNAMIC_SHARED(float, tile); tile[at] = 1; out[0] = tile[0]; }";
    let Some(report) = report_of(source, "spill", 9) else { return };
    assert!(report.contains("touches memory 4 bytes past the 32 bytes of dynamic shared memory"), "{report}");
}

#[test]
fn an_integer_division_by_zero_is_a_failed_launch() {
    // A card gives some number; a kernel that asks for it is wrong all the same.
    let source = "extern \"C\" __global__ void divide(float* out, int by) { out[0] = 7 / by; }";
    let Some(report) = report_of(source, "divide", 0) else { return };
    assert!(report.contains("an integer is divided by zero"), "{report}");
}

#[test]
fn fresh_memory_is_poison() {
    let Some(card) = card() else { return };
    for len in [5, 3_000_000] {
        // SAFETY: reading what nobody wrote is the point.
        let buffer = unsafe { card.stream.alloc::<f32>(len) }.unwrap();
        assert!(card.stream.clone_dtoh(&buffer).unwrap().iter().all(|v| v.is_nan()));
    }
}

#[test]
fn a_card_that_is_full_says_so_and_a_freed_buffer_is_free_again() {
    let Some(_) = card() else { return };
    // The last card: nobody else's buffers come and go on it.
    let context = cudarc::driver::CudaContext::new(3).unwrap();
    let stream = context.new_stream().unwrap();
    let (free, total) = context.mem_get_info().unwrap();
    assert_eq!(total, 2 << 30);
    assert_eq!(free, total);
    // SAFETY: nobody reads them.
    let most = unsafe { stream.alloc::<u8>(total - 1000) }.unwrap();
    assert_eq!(context.mem_get_info().unwrap().0, 1000);
    // SAFETY: as above.
    let error = unsafe { stream.alloc::<u8>(1001) }.unwrap_err();
    assert_eq!(error.0, CUresult::CUDA_ERROR_OUT_OF_MEMORY);
    drop(most);
    // The pool has it until somebody waits, and gives it to whoever takes memory.
    assert_eq!(context.mem_get_info().unwrap().0, 1000);
    // SAFETY: as above.
    drop(unsafe { stream.alloc::<u8>(1001) }.unwrap());
    stream.synchronize().unwrap();
    assert_eq!(context.mem_get_info().unwrap().0, total);
}

#[test]
fn memory_is_taken_back_only_from_a_thread_with_a_context() {
    let Some(card) = card() else { return };
    let buffer = card.stream.alloc_zeros::<u8>(16).unwrap();
    let context = card.context.clone();
    let buffer = std::thread::spawn(move || drop(buffer)).join();
    assert!(buffer.is_ok());
    assert_eq!(context.check_err().unwrap_err().0, CUresult::CUDA_ERROR_INVALID_CONTEXT);
}

#[test]
fn a_copy_beyond_a_buffer_is_refused() {
    let Some(card) = card() else { return };
    let buffer = card.stream.alloc_zeros::<u8>(16).unwrap();
    let pointer = {
        use cudarc::driver::DevicePtr;
        buffer.device_ptr(&card.stream).0
    };
    // SAFETY: refused before anything is touched.
    let result =
        unsafe { cudarc::driver::result::memcpy_htod_async(pointer + 8, &[0u8; 9], card.stream.cu_stream()) };
    assert_eq!(result.unwrap_err().0, CUresult::CUDA_ERROR_INVALID_VALUE);
}

#[test]
fn pinned_host_memory_is_read_by_kernels_in_place() {
    let Some(card) = card() else { return };
    let kernel = card.kernel(
        "extern \"C\" __global__ void double_it(float* out, const float* in) { *out = 2 * *in; }",
        "double_it",
    );
    // SAFETY: written before it is read.
    let mut host = unsafe { card.context.alloc_pinned::<f32>(4) }.unwrap();
    host.as_mut_slice().unwrap()[0] = 21.0;
    let address = host.as_ptr().unwrap() as u64;
    let mut out = card.stream.alloc_zeros::<f32>(1).unwrap();
    // SAFETY: unified addresses: the host pointer is the device's.
    unsafe { card.stream.launch_builder(&kernel).arg(&mut out).arg(&address).launch(ONE) }.unwrap();
    assert_eq!(card.stream.clone_dtoh(&out).unwrap(), [42.0]);
}

#[test]
fn compile_errors_carry_the_line_of_the_source() {
    let Some(_) = card() else { return };
    let log =
        compile("// one\nextern \"C\" __global__ void broken(float* out) { out[0] = nothing; }", "sm_80")
            .unwrap_err();
    assert!(log.contains("test.cu:2:"), "{log}");
    assert!(log.contains("nothing"), "{log}");
    let log = compile("", "sm_60").unwrap_err();
    assert!(log.contains("invalid value for --gpu-architecture"), "{log}");
}

#[test]
fn a_spoilt_cubin_and_one_for_another_card_are_refused() {
    let Some(card) = card() else { return };
    let source = "extern \"C\" __global__ void nothing() {}";
    let good = compile(source, "sm_80").unwrap();
    let load =
        |image: Vec<u8>| card.context.load_module(Ptx::from_binary(image)).map(|_| ()).map_err(|e| e.0);
    assert_eq!(load(good.clone()), Ok(()));
    let mut spoilt = good.clone();
    spoilt[good.len() / 2] ^= 1;
    assert_eq!(load(spoilt), Err(CUresult::CUDA_ERROR_INVALID_IMAGE));
    assert_eq!(load(vec![0; 4096]), Err(CUresult::CUDA_ERROR_INVALID_IMAGE));
    assert_eq!(load(compile(source, "sm_90").unwrap()), Err(CUresult::CUDA_ERROR_NO_BINARY_FOR_GPU));
}
