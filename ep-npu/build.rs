//! Keeps the plugin mapped: ONNX Runtime unloads it on `unregister_execution_provider_library` even
//! while sessions that it made are alive, and their next call would land in unmapped memory.

fn main() {
    println!("cargo::rerun-if-changed=build.rs");
    println!("cargo::rustc-cdylib-link-arg=-Wl,-z,nodelete");
}
