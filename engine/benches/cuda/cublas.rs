//! cuBLASLt, where it is there: for the card's bf16 matrix rate, and beside our own dense products. Declared here
//! by hand, because cudarc's module of it ends the process where the library is missing.

use super::timing::Clock;
use crate::data;
use cudarc::driver::{CudaSlice, DevicePtr, DevicePtrMut};
use flotilla_engine::cuda::{Card, CudaError, Library, Opened};
use std::ffi::c_void;

type Handle = *mut c_void;
type Status = i32;

// Values of cublasLt.h, cublas_api.h and library_types.h.
const COMPUTE_F32: i32 = 68;
const TYPE_F32: i32 = 0;
const TYPE_BF16: i32 = 14;
const DESC_TRANSPOSE_A: i32 = 3;
static TRANSPOSED: i32 = 1;
const PREFERENCE_WORKSPACE_BYTES: i32 = 1;
static WORKSPACE_BYTES: usize = 64 << 20;

/// T = M = K of the product that tells the matrix rate.
const RATE_WIDTH: usize = 8192;

#[repr(C)]
#[derive(Clone, Copy, Default)]
struct Heuristic {
    algorithm: [u64; 8],
    workspace_bytes: usize,
    state: Status,
    waves: f32,
    reserved: [i32; 4],
}

type Create = unsafe extern "C" fn(*mut Handle) -> Status;
type DescCreate = unsafe extern "C" fn(*mut Handle, i32, i32) -> Status;
type DescSet = unsafe extern "C" fn(Handle, i32, *const c_void, usize) -> Status;
type LayoutCreate = unsafe extern "C" fn(*mut Handle, i32, u64, u64, i64) -> Status;
type Choose = unsafe extern "C" fn(
    Handle,
    Handle,
    Handle,
    Handle,
    Handle,
    Handle,
    Handle,
    i32,
    *mut Heuristic,
    *mut i32,
) -> Status;
type Matmul = unsafe extern "C" fn(
    Handle,
    Handle,
    *const f32,
    u64,
    Handle,
    u64,
    Handle,
    *const f32,
    u64,
    Handle,
    u64,
    Handle,
    *const [u64; 8],
    u64,
    usize,
    *mut c_void,
) -> Status;

pub struct CublasLt {
    handle: Handle,
    desc_create: DescCreate,
    desc_set: DescSet,
    layout_create: LayoutCreate,
    preference_create: Create,
    preference_set: DescSet,
    choose: Choose,
    matmul: Matmul,
    workspace: CudaSlice<u8>,
}

fn checked(doing: &'static str, status: Status) -> Result<(), CudaError> {
    match status {
        0 => Ok(()),
        status => Err(CudaError::Driver { doing: doing.into(), reason: format!("cuBLASLt says {status}") }),
    }
}

/// One product, ready to be launched. Its descriptors are never given back: there are a few dozen.
pub struct Product {
    desc: Handle,
    w: Handle,
    x: Handle,
    y: Handle,
    algorithm: [u64; 8],
}

impl CublasLt {
    pub fn open(card: &Card) -> Result<CublasLt, CudaError> {
        if card.facts().capability < (8, 0) {
            let reason = "the card has no bf16 matrix units".into();
            return Err(CudaError::Driver { doing: "use cuBLASLt".into(), reason });
        }
        let library = Opened::open(Library::CublasLt)?;
        // SAFETY: the types are those of cublasLt.h, here and below.
        let create: Create = unsafe { library.symbol("cublasLtCreate")? };
        card.stream().context().bind_to_thread().map_err(CudaError::doing("bind the card"))?;
        let mut handle = std::ptr::null_mut();
        // SAFETY: it writes one handle.
        checked("start cuBLASLt", unsafe { create(&mut handle) })?;
        // SAFETY: as above.
        unsafe {
            Ok(CublasLt {
                handle,
                desc_create: library.symbol("cublasLtMatmulDescCreate")?,
                desc_set: library.symbol("cublasLtMatmulDescSetAttribute")?,
                layout_create: library.symbol("cublasLtMatrixLayoutCreate")?,
                preference_create: library.symbol("cublasLtMatmulPreferenceCreate")?,
                preference_set: library.symbol("cublasLtMatmulPreferenceSetAttribute")?,
                choose: library.symbol("cublasLtMatmulAlgoGetHeuristic")?,
                matmul: library.symbol("cublasLtMatmul")?,
                workspace: card.zeros(WORKSPACE_BYTES)?,
            })
        }
    }

    /// y[T, M] = x[T, K] W[M, K]ᵀ, by the first of cuBLASLt's own proposals. In its words, which go by columns:
    /// yᵀ = Wᵀ' x', where W and x lie as K × M and K × T.
    pub fn product(&self, t: usize, m: usize, k: usize) -> Result<Product, CudaError> {
        let (t, m, k) = (t as u64, m as u64, k as u64);
        let new = std::ptr::null_mut;
        let (mut desc, mut preference) = (new(), new());
        let [mut w, mut x, mut y] = [new(); 3];
        let (mut best, mut found) = (Heuristic::default(), 0);
        // SAFETY: each call gets the handles and the numbers of bytes that cublasLt.h asks for, and writes one
        // handle, or one result and one number.
        unsafe {
            checked("describe a product", (self.desc_create)(&mut desc, COMPUTE_F32, TYPE_F32))?;
            let transposed = (&raw const TRANSPOSED).cast();
            checked("describe a product", (self.desc_set)(desc, DESC_TRANSPOSE_A, transposed, 4))?;
            checked("describe W", (self.layout_create)(&mut w, TYPE_BF16, k, m, k as i64))?;
            checked("describe x", (self.layout_create)(&mut x, TYPE_BF16, k, t, k as i64))?;
            checked("describe y", (self.layout_create)(&mut y, TYPE_F32, m, t, m as i64))?;
            checked("describe what is preferred", (self.preference_create)(&mut preference))?;
            let bytes = (&raw const WORKSPACE_BYTES).cast();
            let set =
                (self.preference_set)(preference, PREFERENCE_WORKSPACE_BYTES, bytes, size_of::<usize>());
            checked("describe what is preferred", set)?;
            let chosen = (self.choose)(self.handle, desc, w, x, y, y, preference, 1, &mut best, &mut found);
            checked("choose a product", chosen)?;
        }
        checked("choose a product", if found > 0 { best.state } else { -1 })?;
        Ok(Product { desc, w, x, y, algorithm: best.algorithm })
    }

    pub fn launch(
        &mut self,
        card: &Card,
        product: &Product,
        w: &CudaSlice<u16>,
        x: &CudaSlice<u16>,
        y: &mut CudaSlice<f32>,
    ) -> Result<(), CudaError> {
        let stream = card.stream();
        let (one, zero) = (1.0f32, 0.0f32);
        let (w, _w) = w.device_ptr(stream);
        let (x, _x) = x.device_ptr(stream);
        let (y, _y) = y.device_ptr_mut(stream);
        let (workspace, _workspace) = self.workspace.device_ptr_mut(stream);
        // SAFETY: the buffers are as long as the product's shapes say, by the callers below and in dense.rs.
        let status = unsafe {
            (self.matmul)(
                self.handle,
                product.desc,
                &one,
                w,
                product.w,
                x,
                product.x,
                &zero,
                y,
                product.y,
                y,
                product.y,
                &product.algorithm,
                workspace,
                WORKSPACE_BYTES,
                stream.cu_stream().cast(),
            )
        };
        checked("multiply", status)
    }

    /// bf16 flops a second of a large product of random values.
    pub fn rate(&mut self, card: &Card, clock: &Clock) -> Result<f64, CudaError> {
        let n = RATE_WIDTH;
        let (w, x) = (data::bf16s(card, n * n, 1)?, data::bf16s(card, n * n, 2)?);
        let (mut y, product) = (card.zeros(n * n)?, self.product(n, n, n)?);
        let seconds = clock.launch(card, 1, |_| self.launch(card, &product, &w, &x, &mut y))?;
        Ok(2.0 * (n as f64).powi(3) / seconds)
    }
}

const _: () = assert!(size_of::<Heuristic>() == 96);
