//! What a rank says of itself before a way to sum is chosen.

use super::choose::{Facts, SumChoice, SumPath};
use super::{CardSettings, nccl};
use crate::cuda::{Card, Library, Nccl, Opened};
use cudarc::driver::sys::{CUdevice, CUdevice_attribute as Attribute};
use std::ffi::c_int;
use std::sync::OnceLock;
use std::time::Instant;

pub(super) fn facts(card: &Card, settings: &CardSettings) -> Facts {
    static PROCESS: OnceLock<String> = OnceLock::new();
    let nccl = match settings.choice {
        SumChoice::Auto | SumChoice::Only(SumPath::Nccl) => Nccl::open().map_err(|error| error.to_string()),
        SumChoice::Only(_) => Err("it was not asked for".into()),
    };
    Facts {
        choice: settings.choice,
        wire: settings.wire,
        elements_max: settings.elements_max,
        machine: machine(),
        process: PROCESS.get_or_init(unlike_any_other).clone(),
        card: card_name(card),
        nccl_shares_cards: nccl.as_ref().is_ok_and(|nccl| nccl::shares_cards(nccl.version())),
        nccl_keeps_to_itself: nccl::keeps_to_itself(),
        nccl: nccl.map(|nccl| (nccl.version().major, nccl.version().minor, nccl.version().patch)),
    }
}

/// New with every start of a kernel.
fn machine() -> String {
    let boot = std::fs::read_to_string("/proc/sys/kernel/random/boot_id");
    boot.map_or_else(|_| unlike_any_other(), |boot| boot.trim().to_owned())
}

fn unlike_any_other() -> String {
    crate::collective::memory::random().map_or_else(|_| format!("{:?}", Instant::now()), |bytes| hex(&bytes))
}

fn hex(bytes: &[u8]) -> String {
    bytes.iter().map(|byte| format!("{byte:02x}")).collect()
}

/// By the second version, from CUDA 11.4 on: to the first, all instances of a card that MIG has cut are one.
fn uuid(device: CUdevice) -> Option<[u8; 16]> {
    type Uuid = unsafe extern "C" fn(*mut [u8; 16], CUdevice) -> c_int;
    let mut uuid = [0; 16];
    // SAFETY: the signature is that of cuda.h, where CUresult and int have the same size, and CUuuid is 16 bytes; the
    // device is open.
    let code = unsafe {
        Opened::open(Library::Driver).ok()?.symbol::<Uuid>("cuDeviceGetUuid_v2").ok()?(&mut uuid, device)
    };
    (code == 0).then_some(uuid)
}

/// The same for two ranks of a machine if and only if they have the same card.
fn card_name(card: &Card) -> String {
    let context = card.stream().context();
    if let Some(uuid) = uuid(context.cu_device()) {
        return hex(&uuid);
    }
    let places = [
        Attribute::CU_DEVICE_ATTRIBUTE_PCI_DOMAIN_ID,
        Attribute::CU_DEVICE_ATTRIBUTE_PCI_BUS_ID,
        Attribute::CU_DEVICE_ATTRIBUTE_PCI_DEVICE_ID,
    ];
    let places = places.map(|place| context.attribute(place).unwrap_or(-1).to_string());
    places.join(":")
}
