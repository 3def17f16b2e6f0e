//! The bindings, made by bindgen from the installed headers: what is on the lists below, and what that needs.

use std::path::Path;

use crate::install::Install;

/// Functions that are used.
const FUNCTIONS: [&str; 60] = [
    "pollux_spdk_log_to",
    "spdk_dma_free",
    "spdk_dma_zmalloc",
    "spdk_env_init",
    "spdk_env_opts_init",
    "spdk_get_ticks",
    "spdk_get_ticks_hz",
    "spdk_iommu_is_enabled",
    "spdk_log_set_level",
    "spdk_log_set_print_level",
    "spdk_mem_register",
    "spdk_mem_unregister",
    "spdk_nvme_connect",
    "spdk_nvme_ctrlr_alloc_io_qpair",
    "spdk_nvme_ctrlr_cmd_abort_ext",
    "spdk_nvme_ctrlr_cmd_get_log_page",
    "spdk_nvme_ctrlr_connect_io_qpair",
    "spdk_nvme_ctrlr_disconnect",
    "spdk_nvme_ctrlr_fail",
    "spdk_nvme_ctrlr_free_io_qpair",
    "spdk_nvme_ctrlr_get_data",
    "spdk_nvme_ctrlr_get_default_ctrlr_opts",
    "spdk_nvme_ctrlr_get_default_io_qpair_opts",
    "spdk_nvme_ctrlr_get_first_active_ns",
    "spdk_nvme_ctrlr_get_flags",
    "spdk_nvme_ctrlr_get_max_sges",
    "spdk_nvme_ctrlr_get_next_active_ns",
    "spdk_nvme_ctrlr_get_ns",
    "spdk_nvme_ctrlr_get_pci_device",
    "spdk_nvme_ctrlr_is_active_ns",
    "spdk_nvme_ctrlr_is_failed",
    "spdk_nvme_ctrlr_process_admin_completions",
    "spdk_nvme_ctrlr_reconnect_async",
    "spdk_nvme_ctrlr_reconnect_poll_async",
    "spdk_nvme_detach",
    "spdk_nvme_ns_cmd_compare",
    "spdk_nvme_ns_cmd_comparev",
    "spdk_nvme_ns_cmd_flush",
    "spdk_nvme_ns_cmd_read",
    "spdk_nvme_ns_cmd_write",
    "spdk_nvme_ns_cmd_write_zeroes",
    "spdk_nvme_ns_cmd_writev",
    "spdk_nvme_ns_get_data",
    "spdk_nvme_ns_get_extended_sector_size",
    "spdk_nvme_ns_get_flags",
    "spdk_nvme_ns_get_max_io_xfer_size",
    "spdk_nvme_ns_get_md_size",
    "spdk_nvme_ns_get_num_sectors",
    "spdk_nvme_ns_get_pi_format",
    "spdk_nvme_ns_get_pi_type",
    "spdk_nvme_ns_get_optimal_io_boundary",
    "spdk_nvme_ns_get_sector_size",
    "spdk_nvme_ns_is_active",
    "spdk_nvme_qpair_add_cmd_error_injection",
    "spdk_nvme_qpair_is_connected",
    "spdk_nvme_qpair_process_completions",
    "spdk_nvme_qpair_remove_cmd_error_injection",
    "spdk_nvme_transport_available_by_name",
    "spdk_nvme_transport_id_parse",
    "spdk_pci_device_is_removed",
];

/// Types that are used in the places where functions take or return pointers to no particular type.
const TYPES: [&str; 3] = ["spdk_nvme_ns_flags", "spdk_nvme_ctrlr_flags", "spdk_log_level"];

/// Constants that are used.
const CONSTANTS: [&str; 2] = ["SPDK_NVME_IO_FLAGS_.*", "SPDK_VERSION_.*"];

/// Types that nobody looks into; the pages that a drive returns are read by the layout of the specification.
const OPAQUE: [&str; 9] = [
    "spdk_nvme_ctrlr_data",
    "spdk_nvme_ns_data",
    "spdk_nvme_vs_register",
    "spdk_nvme_ctrlr",
    "spdk_nvme_ns",
    "spdk_nvme_qpair",
    "spdk_pci_device",
    "spdk_key",
    "spdk_nvme_cmd",
];

/// Writes `bindings.rs` to where Cargo wants what is generated.
pub fn generate(install: &Install) -> Result<(), String> {
    let mut builder = bindgen::Builder::default()
        .header("wrapper.h")
        .clang_args(
            install
                .include_directories
                .iter()
                .map(|directory| format!("-I{}", directory.display())),
        )
        // Comments are SPDK's own, and stay where they are.
        .generate_comments(false)
        .layout_tests(false)
        .use_core()
        .prepend_enum_name(false)
        .default_enum_style(bindgen::EnumVariation::ModuleConsts)
        .derive_debug(false)
        .derive_default(false)
        .parse_callbacks(Box::new(bindgen::CargoCallbacks::new()));
    for function in FUNCTIONS {
        builder = builder.allowlist_function(function);
    }
    for name in TYPES {
        builder = builder.allowlist_type(name);
    }
    for constant in CONSTANTS {
        builder = builder.allowlist_var(constant);
    }
    for name in OPAQUE {
        builder = builder.opaque_type(name);
    }
    let directory = std::env::var_os("OUT_DIR").ok_or("OUT_DIR is not set: build with Cargo")?;
    let path = Path::new(&directory).join("bindings.rs");
    builder
        .generate()
        .map_err(|error| {
            format!(
                "the bindings to SPDK cannot be made: {error}\n\
                 bindgen needs libclang: apt-get install libclang-dev, or set LIBCLANG_PATH"
            )
        })?
        .write_to_file(&path)
        .map_err(|error| format!("{} cannot be written: {error}", path.display()))
}
