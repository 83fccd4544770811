//! cuBLASLt, where it is there: products of bf16 matrices with sums in f32. Declared here by hand, because
//! cudarc's module of it ends the process where the library is missing. Which products go by it is not here.

use super::card::Card;
use super::error::CudaError;
use super::library::{Library, Opened};
use cudarc::driver::{CudaSlice, CudaStream, CudaView, CudaViewMut, DevicePtr, DevicePtrMut};
use std::ffi::{CStr, c_char, c_void};
use std::ptr::null_mut;
use std::sync::Arc;

type Handle = *mut c_void;
type Status = i32;
type Algorithm = [u64; 8];

// Values of cublasLt.h, cublas_api.h and library_types.h.
const COMPUTE_F32: i32 = 68;
const TYPE_F32: i32 = 0;
const TYPE_BF16: i32 = 14;
const DESC_TRANSPOSE_A: i32 = 3;
const DESC_EPILOGUE: i32 = 7;
/// Of a vector in the type of y, which is f32: another type is not taken with an f32 y.
const DESC_BIAS: i32 = 8;
const TRANSPOSED: i32 = 1;
const EPILOGUE_BIAS: i32 = 4;
const PREFERENCE_WORKSPACE_BYTES: i32 = 1;
const PREFERENCE_REDUCTIONS: i32 = 3;
/// Parts of K that blocks sum apart are written to the workspace, and added in order.
const REDUCTION_BY_WORKSPACE: u32 = 2;
/// What W, x, y as it is and y as it becomes begin at a multiple of.
const PREFERENCE_ALIGN_BYTES: [i32; 4] = [5, 6, 7, 8];

#[repr(C)]
#[derive(Clone, Copy, Default)]
struct Heuristic {
    algorithm: Algorithm,
    workspace_bytes: usize,
    state: Status,
    waves: f32,
    reserved: [i32; 4],
}

const _: () = assert!(size_of::<Heuristic>() == 96);

type Create = unsafe extern "C" fn(*mut Handle) -> Status;
type Destroy = unsafe extern "C" fn(Handle) -> Status;
type Set = unsafe extern "C" fn(Handle, i32, *const c_void, usize) -> Status;
/// library, product, W, x, y, y, preference, how many are wanted, results, how many there are
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
/// library, product, alpha, W and its layout, x, beta, y as it is, y as it becomes, algorithm, workspace, stream
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
    *const Algorithm,
    u64,
    usize,
    *mut c_void,
) -> Status;

#[derive(Clone, Copy)]
struct Calls {
    destroy: Destroy,
    desc_create: unsafe extern "C" fn(*mut Handle, i32, i32) -> Status,
    desc_set: Set,
    desc_destroy: Destroy,
    layout_create: unsafe extern "C" fn(*mut Handle, i32, u64, u64, i64) -> Status,
    layout_destroy: Destroy,
    preference_create: Create,
    preference_set: Set,
    preference_destroy: Destroy,
    choose: Choose,
    matmul: Matmul,
}

impl Calls {
    fn of(library: &Opened) -> Result<Calls, CudaError> {
        // SAFETY: the types are those of cublasLt.h.
        unsafe {
            Ok(Calls {
                destroy: library.symbol("cublasLtDestroy")?,
                desc_create: library.symbol("cublasLtMatmulDescCreate")?,
                desc_set: library.symbol("cublasLtMatmulDescSetAttribute")?,
                desc_destroy: library.symbol("cublasLtMatmulDescDestroy")?,
                layout_create: library.symbol("cublasLtMatrixLayoutCreate")?,
                layout_destroy: library.symbol("cublasLtMatrixLayoutDestroy")?,
                preference_create: library.symbol("cublasLtMatmulPreferenceCreate")?,
                preference_set: library.symbol("cublasLtMatmulPreferenceSetAttribute")?,
                preference_destroy: library.symbol("cublasLtMatmulPreferenceDestroy")?,
                choose: library.symbol("cublasLtMatmulAlgoGetHeuristic")?,
                matmul: library.symbol("cublasLtMatmul")?,
            })
        }
    }
}

/// Something of the library's that is given back when it is dropped.
struct Owned {
    handle: Handle,
    destroy: Destroy,
}

impl Drop for Owned {
    fn drop(&mut self) {
        // SAFETY: the library made the handle, and this is its only use from here on. Nothing can be done about
        // a failure.
        unsafe { (self.destroy)(self.handle) };
    }
}

/// y[T, M] = x[T, K] W[M, K]ᵀ, with a bias or without; all three begin at a multiple of `align_bytes`, 16 to 256.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct ProductShape {
    pub t: usize,
    pub m: usize,
    pub k: usize,
    pub bias: bool,
    pub align_bytes: u32,
}

/// One product, ready to be launched.
pub struct Product {
    shape: ProductShape,
    desc: Owned,
    w: Owned,
    x: Owned,
    y: Owned,
    algorithm: Algorithm,
}

/// The library on one card, with the memory that it may work in.
pub struct CublasLt {
    library: &'static Opened,
    calls: Calls,
    handle: Owned,
    stream: Arc<CudaStream>,
    workspace: CudaSlice<u8>,
}

// SAFETY: descriptions and the library's handle may be used from any thread, and one at a time uses them: whoever
// owns them.
unsafe impl Send for CublasLt {}
// SAFETY: as above.
unsafe impl Send for Product {}

impl CublasLt {
    pub fn open(card: &Card, workspace_bytes: usize) -> Result<CublasLt, CudaError> {
        let library = Opened::open(Library::CublasLt)?;
        let refused = |reason: &str| CudaError::Cublas {
            path: library.path().to_owned(),
            doing: "start",
            reason: reason.into(),
        };
        if card.facts().capability < (8, 0) {
            return Err(refused("the card has no bf16 matrix units"));
        }
        // NVIDIA's brings CUDA's runtime with it, which the driver of the emulated card is not enough for.
        let has_runtime = library.has("cublasLtGetCudartVersion");
        if has_runtime && !Opened::open(Library::Driver)?.has("cuGetExportTable") {
            return Err(refused("the driver has no cuGetExportTable, by which CUDA's runtime starts"));
        }
        // SAFETY: the type is that of cublasLt.h.
        let create: Create = unsafe { library.symbol("cublasLtCreate")? };
        let (calls, stream) = (Calls::of(library)?, card.stream().clone());
        bind(&stream)?;
        let handle = owned(library, "start", calls.destroy, |handle| {
            // SAFETY: it writes one handle.
            unsafe { create(handle) }
        })?;
        Ok(CublasLt { library, calls, handle, stream, workspace: card.zeros(workspace_bytes)? })
    }

    /// By the first of cuBLASLt's own proposals. In its words, which go by columns: yᵀ = Wᵀ' x', where W and x lie
    /// as K × M and K × T. It takes the host some 50 to 100 µs.
    pub fn product(&self, shape: ProductShape) -> Result<Product, CudaError> {
        const DOING: &str = "describe a product";
        let ProductShape { t, m, k, bias, .. } = shape;
        let calls = &self.calls;
        let desc = self.owned(DOING, calls.desc_destroy, |handle| {
            // SAFETY: it writes one handle.
            unsafe { (calls.desc_create)(handle, COMPUTE_F32, TYPE_F32) }
        })?;
        self.set(DOING, calls.desc_set, &desc, DESC_TRANSPOSE_A, &TRANSPOSED)?;
        if bias {
            self.set(DOING, calls.desc_set, &desc, DESC_EPILOGUE, &EPILOGUE_BIAS)?;
            // Some address, for the choice; `launch` says which.
            let somewhere = self.workspace.device_ptr(&self.stream).0;
            self.set(DOING, calls.desc_set, &desc, DESC_BIAS, &somewhere)?;
        }
        let layout = |kind, rows: usize, columns: usize| {
            self.owned(DOING, calls.layout_destroy, |handle| {
                // SAFETY: it writes one handle.
                unsafe { (calls.layout_create)(handle, kind, rows as u64, columns as u64, rows as i64) }
            })
        };
        let (w, x, y) = (layout(TYPE_BF16, k, m)?, layout(TYPE_BF16, k, t)?, layout(TYPE_F32, m, t)?);
        let algorithm = self.choose(&desc, [&w, &x, &y], shape.align_bytes)?;
        Ok(Product { shape, desc, w, x, y, algorithm })
    }

    fn choose(&self, desc: &Owned, [w, x, y]: [&Owned; 3], align_bytes: u32) -> Result<Algorithm, CudaError> {
        const DOING: &str = "choose how to multiply";
        let calls = &self.calls;
        let preference = self.owned(DOING, calls.preference_destroy, |handle| {
            // SAFETY: it writes one handle.
            unsafe { (calls.preference_create)(handle) }
        })?;
        let set = calls.preference_set;
        self.set(DOING, set, &preference, PREFERENCE_WORKSPACE_BYTES, &self.workspace.len())?;
        self.set(DOING, set, &preference, PREFERENCE_REDUCTIONS, &REDUCTION_BY_WORKSPACE)?;
        for attribute in PREFERENCE_ALIGN_BYTES {
            self.set(DOING, set, &preference, attribute, &align_bytes)?;
        }
        let (mut best, mut found) = (Heuristic::default(), 0);
        bind(&self.stream)?;
        // SAFETY: every handle is of its kind; it writes at most one result, and how many there are.
        self.checked(DOING, unsafe {
            (calls.choose)(
                self.handle.handle,
                desc.handle,
                w.handle,
                x.handle,
                y.handle,
                y.handle,
                preference.handle,
                1,
                &mut best,
                &mut found,
            )
        })?;
        if found < 1 {
            return Err(self.refused(DOING, "it knows no way".into()));
        }
        self.checked(DOING, best.state)?;
        Ok(best.algorithm)
    }

    /// w: bf16 [M, K], x: bf16 [T, K], bias: f32 [M], y: f32 [T, M].
    pub fn launch(
        &mut self,
        product: &Product,
        w: &CudaView<'_, u16>,
        x: &CudaView<'_, u16>,
        bias: Option<&CudaView<'_, f32>>,
        y: &mut CudaViewMut<'_, f32>,
    ) -> Result<(), CudaError> {
        const DOING: &str = "multiply";
        let ProductShape { t, m, k, .. } = product.shape;
        assert!(
            w.len() >= m * k && x.len() >= t * k && y.len() >= t * m,
            "too short for {:?}",
            product.shape
        );
        assert_eq!(bias.map_or(0, |bias| bias.len()), if product.shape.bias { m } else { 0 });
        let (one, zero, stream) = (1.0f32, 0.0f32, self.stream.clone());
        bind(&stream)?;
        if let Some(bias) = bias {
            self.set(DOING, self.calls.desc_set, &product.desc, DESC_BIAS, &bias.device_ptr(&stream).0)?;
        }
        let (w, _w) = w.device_ptr(&stream);
        let (x, _x) = x.device_ptr(&stream);
        let (y, _y) = y.device_ptr_mut(&stream);
        let workspace_bytes = self.workspace.len();
        let (workspace, held) = self.workspace.device_ptr_mut(&stream);
        let align_bytes = u64::from(product.shape.align_bytes);
        assert!([w, x, y].iter().all(|at| at.is_multiple_of(align_bytes)), "{:?}", product.shape);
        // SAFETY: the buffers are as long as the product's layouts say, and begin where the choice assumed.
        let status = unsafe {
            (self.calls.matmul)(
                self.handle.handle,
                product.desc.handle,
                &one,
                w,
                product.w.handle,
                x,
                product.x.handle,
                &zero,
                y,
                product.y.handle,
                y,
                product.y.handle,
                &product.algorithm,
                workspace,
                workspace_bytes,
                stream.cu_stream().cast(),
            )
        };
        drop(held);
        self.checked(DOING, status)
    }

    fn set<T>(
        &self,
        doing: &'static str,
        set: Set,
        of: &Owned,
        attribute: i32,
        to: &T,
    ) -> Result<(), CudaError> {
        // SAFETY: the attributes above are of the types that are given here; their values are copied.
        let status = unsafe { set(of.handle, attribute, (&raw const *to).cast(), size_of::<T>()) };
        self.checked(doing, status)
    }

    fn owned(
        &self,
        doing: &'static str,
        destroy: Destroy,
        create: impl FnOnce(*mut Handle) -> Status,
    ) -> Result<Owned, CudaError> {
        owned(self.library, doing, destroy, create)
    }

    fn checked(&self, doing: &'static str, status: Status) -> Result<(), CudaError> {
        checked(self.library, doing, status)
    }

    fn refused(&self, doing: &'static str, reason: String) -> CudaError {
        CudaError::Cublas { path: self.library.path().to_owned(), doing, reason }
    }
}

impl Drop for CublasLt {
    fn drop(&mut self) {
        // For the handle, which goes next.
        let _ = bind(&self.stream);
    }
}

/// The library works on the card of the thread that calls it.
fn bind(stream: &CudaStream) -> Result<(), CudaError> {
    stream.context().bind_to_thread().map_err(CudaError::doing("bind the card"))
}

fn owned(
    library: &'static Opened,
    doing: &'static str,
    destroy: Destroy,
    create: impl FnOnce(*mut Handle) -> Status,
) -> Result<Owned, CudaError> {
    let mut handle = null_mut();
    checked(library, doing, create(&mut handle))?;
    Ok(Owned { handle, destroy })
}

fn checked(library: &'static Opened, doing: &'static str, status: Status) -> Result<(), CudaError> {
    match status {
        0 => Ok(()),
        _ => {
            Err(CudaError::Cublas { path: library.path().to_owned(), doing, reason: words(library, status) })
        }
    }
}

/// The library's name for a status, where it tells.
fn words(library: &Opened, status: Status) -> String {
    type Name = unsafe extern "C" fn(Status) -> *const c_char;
    // SAFETY: the type is that of cublasLt.h; it gives a constant string, or null.
    let name = unsafe {
        library.symbol::<Name>("cublasLtGetStatusName").ok().map(|name| name(status)).filter(|n| !n.is_null())
    };
    // SAFETY: as above.
    let name = name.map(|name| unsafe { CStr::from_ptr(name) }.to_string_lossy().into_owned());
    name.map_or_else(|| format!("error {status}"), |name| format!("{name} ({status})"))
}
