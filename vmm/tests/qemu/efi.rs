//! Small UEFI programs, unsigned, that switch the VM off: a firmware that runs one has ended it.

use std::fs;
use std::path::{Path, PathBuf};

/// `EFI_RUNTIME_SERVICES.ResetSystem(EfiResetShutdown, EFI_SUCCESS, 0, NULL)`; the system table is in `rbx`.
const SHUT_DOWN: &[u8] = &[
    0x48, 0x8b, 0x43, 0x58, // mov rax, [rbx+0x58]: the runtime services
    0xb9, 0x02, 0x00, 0x00, 0x00, // mov ecx, EfiResetShutdown
    0x31, 0xd2, 0x45, 0x31, 0xc0, 0x45, 0x31, 0xc9, // xor edx, edx; xor r8d, r8d; xor r9d, r9d
    0xff, 0x50, 0x68, // call [rax+0x68]
];
/// What both begin with: room for arguments, and the system table in `rbx`.
const BEGIN: &[u8] = &[0x53, 0x48, 0x83, 0xec, 0x30, 0x48, 0x89, 0xd3];
/// Stands still.
const HALT: &[u8] = &[0xeb, 0xfe];
/// `EFI_TCG2_PROTOCOL_GUID`.
const TCG2: [u8; 16] = [0x6c, 0x76, 0x7f, 0x60, 0x55, 0x74, 0xbe, 0x42, 0x93, 0x0b, 0xe4, 0xd7, 0x6d, 0xb2, 0x72, 0x0f];

/// A program that switches the VM off.
pub(crate) fn shuts_down(folder: &Path) -> PathBuf {
    write(folder, "shuts-down.efi", &[BEGIN, SHUT_DOWN, HALT].concat())
}

/// A program that switches the VM off if the firmware has a TPM that works, and stands still otherwise.
pub(crate) fn shuts_down_with_tpm(folder: &Path) -> PathBuf {
    let locate = |guid: u8| {
        [
            &[0x48, 0x8b, 0x43, 0x60][..],         // mov rax, [rbx+0x60]: the boot services
            &[0x48, 0x8d, 0x0d, guid, 0, 0, 0],    // lea rcx, [rip+guid]
            &[0x31, 0xd2],                         // xor edx, edx
            &[0x4c, 0x8d, 0x44, 0x24, 0x28],       // lea r8, [rsp+0x28]
            &[0xff, 0x90, 0x40, 0x01, 0x00, 0x00], // call [rax+0x140]: LocateProtocol
            &[0x48, 0x85, 0xc0],                   // test rax, rax
            &[0x75, 22],                           // jnz: past the shutdown, to the halt
        ]
        .concat()
    };
    // From the end of `lea` to the identifier behind the program.
    let after_lea = locate(0).len() - 11;
    let guid = u8::try_from(after_lea + SHUT_DOWN.len() + HALT.len()).expect("near");
    assert_eq!(SHUT_DOWN.len() + HALT.len(), 22);
    write(folder, "tpm.efi", &[BEGIN, &locate(guid), SHUT_DOWN, HALT, &TCG2].concat())
}

/// Writes a PE32+ file of one section with `code`.
fn write(folder: &Path, name: &str, code: &[u8]) -> PathBuf {
    let mut file = Vec::new();
    let mut put = |bytes: &[u8]| file.extend_from_slice(bytes);
    put(b"MZ");
    put(&[0; 58]);
    put(&64_u32.to_le_bytes());
    put(b"PE\0\0");
    // x86-64, one section, an optional header of 240 bytes, an executable image.
    for word in [0x8664_u16, 1, 0, 0, 0, 0, 0, 0, 240, 0x22] {
        put(&word.to_le_bytes());
    }
    // PE32+: sizes, the entry and the base of code.
    put(&0x20b_u16.to_le_bytes());
    put(&[0, 0]);
    for long in [0x200_u32, 0, 0, 0x1000, 0x1000] {
        put(&long.to_le_bytes());
    }
    put(&0_u64.to_le_bytes());
    for long in [0x1000_u32, 0x200, 0, 0, 0, 0, 0x2000, 0x200, 0] {
        put(&long.to_le_bytes());
    }
    // An EFI application; no stack, no heap, 16 empty directories.
    put(&[10, 0, 0, 0]);
    put(&[0; 36]);
    put(&16_u32.to_le_bytes());
    put(&[0; 128]);
    put(b".text\0\0\0");
    for long in [u32::try_from(code.len()).expect("short"), 0x1000, 0x200, 0x200, 0, 0, 0, 0x6000_0020] {
        put(&long.to_le_bytes());
    }
    file.resize(0x200, 0);
    file.extend_from_slice(code);
    // QEMU reads the first kilobytes of a kernel to see what it is.
    file.resize(0x4000, 0);
    let path = folder.join(name);
    fs::write(&path, file).expect("written");
    path
}
