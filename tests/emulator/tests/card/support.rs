//! A card, its kernels, and what it had to say about a launch that failed.

use cudarc::driver::{CudaContext, CudaFunction, CudaModule, CudaStream, DriverError, sys};
use cudarc::nvrtc::{Ptx, sys as nvrtc};
use std::ffi::{CStr, CString};
use std::sync::{Arc, OnceLock};

pub const INTRINSICS: &str = include_str!("../../../../engine/src/backend/cuda/intrinsics.cuh");
const WGMMA: &str = include_str!("../../../../engine/src/backend/cuda/wgmma.cuh");

/// The emulated driver, loaded before anything else asks for a libcuda; `None` where there is no C++ compiler.
pub fn driver() -> Option<&'static libloading::Library> {
    static DRIVER: OnceLock<Option<libloading::Library>> = OnceLock::new();
    let load = || {
        let folder = flotilla_emulator::folder_or_skip()?;
        // SAFETY: this is the first thing that any test of this binary does, and nothing else reads the environment
        // by then. A card for each rank of the largest collective, and one that only the memory test uses.
        unsafe { std::env::set_var("FLOTILLA_EMULATED_CARDS", "4") };
        // SAFETY: these are our own libraries; loading them runs no code but their constructors.
        let open = |name| unsafe {
            libloading::Library::new(folder.join(name)).expect("the emulated library loads")
        };
        std::mem::forget(open("libnvrtc.so"));
        std::mem::forget(open("libnccl.so"));
        Some(open("libcuda.so"))
    };
    DRIVER.get_or_init(load).as_ref()
}

/// A card with a stream of its own, so that what one test breaks stays with it.
pub struct Card {
    pub context: Arc<CudaContext>,
    pub stream: Arc<CudaStream>,
}

pub fn nccl_library() -> Option<()> {
    driver().map(|_| ())
}

pub fn card() -> Option<Card> {
    card_on(0)
}

pub fn card_on(ordinal: usize) -> Option<Card> {
    driver()?;
    let context = CudaContext::new(ordinal).expect("a card");
    // SAFETY: each test uses one stream, which orders everything.
    unsafe { context.disable_event_tracking() };
    let stream = context.new_stream().expect("a stream");
    Some(Card { context, stream })
}

impl Card {
    pub fn kernel(&self, source: &str, name: &str) -> CudaFunction {
        self.module(source).load_function(name).expect("the kernel is there")
    }

    pub fn module(&self, source: &str) -> Arc<CudaModule> {
        let cubin = compile(source, "sm_80").unwrap_or_else(|log| panic!("{log}"));
        self.context.load_module(Ptx::from_binary(cubin)).expect("the module loads")
    }

    /// What the emulated card says about the first launch that failed on the stream.
    pub fn report(&self) -> String {
        type Report = unsafe extern "C" fn(sys::CUstream) -> *const std::ffi::c_char;
        // SAFETY: the function is the emulated driver's, of that type; the text lives until the thread's next call.
        unsafe {
            let report =
                driver().expect("loaded").get::<Report>(c"flotilla_emulated_stream_error").expect("exported");
            CStr::from_ptr(report(self.stream.cu_stream())).to_str().expect("ASCII").to_owned()
        }
    }

    /// Waits, expecting the launch to have failed, and returns the report.
    pub fn failure(&self) -> (DriverError, String) {
        let error = self.stream.synchronize().expect_err("the launch should fail");
        (error, self.report())
    }
}

/// The cubin, or the log.
pub fn compile(source: &str, architecture: &str) -> Result<Vec<u8>, String> {
    let source = CString::new(source).unwrap();
    let texts = [INTRINSICS, WGMMA].map(|text| CString::new(text).unwrap());
    let options =
        [CString::new(format!("--gpu-architecture={architecture}")).unwrap(), c"-std=c++17".to_owned()];
    let options: Vec<_> = options.iter().map(|o| o.as_ptr()).collect();
    // SAFETY: the calls follow NVRTC's contract: valid strings, sizes asked for before the bytes.
    unsafe {
        let mut program = std::ptr::null_mut();
        let (headers, names) =
            ([texts[0].as_ptr(), texts[1].as_ptr()], [c"intrinsics.cuh".as_ptr(), c"wgmma.cuh".as_ptr()]);
        nvrtc::nvrtcCreateProgram(
            &mut program,
            source.as_ptr(),
            c"test.cu".as_ptr(),
            2,
            headers.as_ptr(),
            names.as_ptr(),
        )
        .result()
        .unwrap();
        let compiled = nvrtc::nvrtcCompileProgram(program, options.len() as i32, options.as_ptr()).result();
        let mut bytes = 0;
        let output = if compiled.is_ok() {
            nvrtc::nvrtcGetCUBINSize(program, &mut bytes).result().unwrap();
            let mut cubin = vec![0u8; bytes];
            nvrtc::nvrtcGetCUBIN(program, cubin.as_mut_ptr().cast()).result().unwrap();
            Ok(cubin)
        } else {
            nvrtc::nvrtcGetProgramLogSize(program, &mut bytes).result().unwrap();
            let mut log = vec![0u8; bytes];
            nvrtc::nvrtcGetProgramLog(program, log.as_mut_ptr().cast()).result().unwrap();
            Err(CStr::from_bytes_with_nul(&log).unwrap().to_string_lossy().into_owned())
        };
        nvrtc::nvrtcDestroyProgram(&mut program).result().unwrap();
        output
    }
}
