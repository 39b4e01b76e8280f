//! The program that shows whether KVM can run a guest.
//!
//! An ELF that QEMU starts by its PVH note (the Xen note `PHYS32_ENTRY`), without firmware and in no time. It does what
//! every 64-bit kernel does early and a half-working KVM cannot: switches page tables, compares and exchanges 16
//! bytes, takes a breakpoint and returns, saves and restores the extended registers. Then it ends QEMU with
//! [`SUCCESS`], or with the number of the step that gave a wrong answer.

/// QEMU's exit code when every step went well; step `n` that did not gives `2 * n + 1`.
pub(super) const SUCCESS: i32 = 2 * 0x10 + 1;

/// Where the code is loaded and starts.
const BASE: u64 = 0x10_0000;
/// Where the code is in the file: a page's beginning, as it is in memory.
const CODE_OFFSET: u64 = 0x1000;
const HEADER: u16 = 64;
const PROGRAM_HEADER: u16 = 56;

/// The steps, by the number they are reported under.
const STEPS: [&str; 4] =
    ["switching page tables", "cmpxchg16b", "a breakpoint", "saving and restoring extended registers"];

/// What went wrong when QEMU ended with `code`.
pub(super) fn failed_step(code: i32) -> Option<&'static str> {
    let step = usize::try_from(code.checked_sub(1)? / 2).ok()?;
    (code % 2 == 1).then(|| STEPS.get(step.checked_sub(1)?).copied())?
}

/// The whole file.
pub(super) fn elf() -> Vec<u8> {
    let note_offset = u64::from(HEADER) + 2 * u64::from(PROGRAM_HEADER);
    let note = note();
    let mut file = header();
    file.extend(program_header(PT_LOAD, CODE_OFFSET, BASE, CODE.len() as u64));
    file.extend(program_header(PT_NOTE, note_offset, 0, note.len() as u64));
    file.extend(note);
    file.resize(CODE_OFFSET as usize, 0);
    file.extend(CODE);
    file
}

const PT_LOAD: u32 = 1;
const PT_NOTE: u32 = 4;

fn header() -> Vec<u8> {
    let mut bytes = b"\x7fELF\x02\x01\x01".to_vec(); // 64 bits, little-endian, version 1
    bytes.resize(16, 0);
    for half in [2_u16, 62] {
        bytes.extend(half.to_le_bytes()); // executable, x86-64
    }
    bytes.extend(1_u32.to_le_bytes()); // version
    for address in [BASE, u64::from(HEADER), 0] {
        bytes.extend(address.to_le_bytes()); // entry, program headers, no sections
    }
    bytes.extend(0_u32.to_le_bytes()); // flags
    for half in [HEADER, PROGRAM_HEADER, 2, 64, 0, 0] {
        bytes.extend(half.to_le_bytes());
    }
    bytes
}

fn program_header(kind: u32, offset: u64, address: u64, length: u64) -> Vec<u8> {
    let mut bytes = Vec::new();
    for word in [kind, 7] {
        bytes.extend(word.to_le_bytes()); // readable, writable, executable
    }
    for long in [offset, address, address, length, length, 4] {
        bytes.extend(long.to_le_bytes());
    }
    bytes
}

/// `XEN_ELFNOTE_PHYS32_ENTRY`: name and value length, type 18, name, value.
fn note() -> Vec<u8> {
    let mut bytes = Vec::new();
    for word in [4_u32, 8, 18] {
        bytes.extend(word.to_le_bytes());
    }
    bytes.extend(b"Xen\0");
    bytes.extend(BASE.to_le_bytes());
    bytes
}

/// The code, with its source: GNU as, Intel syntax, loaded at 0x100000.
///
/// Memory: tables of pages from 0x200000, of interrupts at 0x206000, stack below 0x210000, extended registers at
/// 0x220000, 16 bytes to exchange at 0x230000.
#[rustfmt::skip]
const CODE: [u8; 552] = [
    // 32 bits.
    // _start:
    // # PVH: 32 bits, no paging, interrupts off. Identity tables for the first GiB twice, in which
    // # 0x800000 is itself (A) or 0xa00000 (B).
    0xbc, 0x00, 0x00, 0x21, 0x00,                                        // mov esp, 0x210000
    0xfc,                                                                // cld
    0x31, 0xc0,                                                          // xor eax, eax
    0xbf, 0x00, 0x00, 0x20, 0x00,                                        // mov edi, 0x200000
    0xb9, 0x00, 0x18, 0x00, 0x00,                                        // mov ecx, 0x1800
    0xf3, 0xab,                                                          // rep stosd
    0xc7, 0x05, 0x00, 0x00, 0x20, 0x00, 0x03, 0x10, 0x20, 0x00,          // mov dword ptr [0x200000], 0x201003
    0xc7, 0x05, 0x00, 0x10, 0x20, 0x00, 0x03, 0x20, 0x20, 0x00,          // mov dword ptr [0x201000], 0x202003
    0xc7, 0x05, 0x00, 0x30, 0x20, 0x00, 0x03, 0x40, 0x20, 0x00,          // mov dword ptr [0x203000], 0x204003
    0xc7, 0x05, 0x00, 0x40, 0x20, 0x00, 0x03, 0x50, 0x20, 0x00,          // mov dword ptr [0x204000], 0x205003
    0xb8, 0x83, 0x00, 0x00, 0x00,                                        // mov eax, 0x83
    0x31, 0xc9,                                                          // xor ecx, ecx
    // fill:
    0x89, 0x04, 0xcd, 0x00, 0x20, 0x20, 0x00,                            // mov [ecx*8 + 0x202000], eax
    0x89, 0x04, 0xcd, 0x00, 0x50, 0x20, 0x00,                            // mov [ecx*8 + 0x205000], eax
    0x05, 0x00, 0x00, 0x20, 0x00,                                        // add eax, 0x200000
    0x41,                                                                // inc ecx
    0x81, 0xf9, 0x00, 0x02, 0x00, 0x00,                                  // cmp ecx, 512
    0x75, 0xe4,                                                          // jne fill
    0xc7, 0x05, 0x20, 0x50, 0x20, 0x00, 0x83, 0x00, 0xa0, 0x00,          // mov dword ptr [0x205020], 0xa00083
    0xc7, 0x05, 0x00, 0x00, 0x80, 0x00, 0x0a, 0x0a, 0x0a, 0x0a,          // mov dword ptr [0x800000], 0x0a0a0a0a
    0xc7, 0x05, 0x00, 0x00, 0xa0, 0x00, 0x0b, 0x0b, 0x0b, 0x0b,          // mov dword ptr [0xa00000], 0x0b0b0b0b
    // # Long mode.
    0x0f, 0x20, 0xe0,                                                    // mov eax, cr4
    0x0d, 0x20, 0x06, 0x00, 0x00,                                        // or eax, 0x620
    0x0f, 0x22, 0xe0,                                                    // mov cr4, eax
    0xb8, 0x00, 0x00, 0x20, 0x00,                                        // mov eax, 0x200000
    0x0f, 0x22, 0xd8,                                                    // mov cr3, eax
    0xb9, 0x80, 0x00, 0x00, 0xc0,                                        // mov ecx, 0xc0000080
    0x0f, 0x32,                                                          // rdmsr
    0x0d, 0x00, 0x01, 0x00, 0x00,                                        // or eax, 0x100
    0x0f, 0x30,                                                          // wrmsr
    0x0f, 0x20, 0xc0,                                                    // mov eax, cr0
    0x83, 0xe0, 0xfb,                                                    // and eax, 0xfffffffb
    0x0d, 0x03, 0x00, 0x00, 0x80,                                        // or eax, 0x80000003
    0x0f, 0x22, 0xc0,                                                    // mov cr0, eax
    0x0f, 0x01, 0x15, 0x18, 0x02, 0x10, 0x00,                            // lgdt [gdt_pointer]
    0xea, 0xba, 0x00, 0x10, 0x00, 0x08, 0x00,                            // ljmp 8, offset long_mode
    // 64 bits.
    // long_mode:
    0xb8, 0x10, 0x00, 0x00, 0x00,                                        // mov eax, 16
    0x8e, 0xd8,                                                          // mov ds, eax
    0x8e, 0xc0,                                                          // mov es, eax
    0x8e, 0xd0,                                                          // mov ss, eax
    // # 1: another page table.
    0xbf, 0x01, 0x00, 0x00, 0x00,                                        // mov edi, 1
    0xbb, 0x00, 0x00, 0x80, 0x00,                                        // mov ebx, 0x800000
    0x81, 0x3b, 0x0a, 0x0a, 0x0a, 0x0a,                                  // cmp dword ptr [rbx], 0x0a0a0a0a
    0x0f, 0x85, 0x15, 0x01, 0x00, 0x00,                                  // jne fail
    0xb8, 0x00, 0x30, 0x20, 0x00,                                        // mov eax, 0x203000
    0x0f, 0x22, 0xd8,                                                    // mov cr3, rax
    0x81, 0x3b, 0x0b, 0x0b, 0x0b, 0x0b,                                  // cmp dword ptr [rbx], 0x0b0b0b0b
    0x0f, 0x85, 0x01, 0x01, 0x00, 0x00,                                  // jne fail
    0xb8, 0x00, 0x00, 0x20, 0x00,                                        // mov eax, 0x200000
    0x0f, 0x22, 0xd8,                                                    // mov cr3, rax
    0x81, 0x3b, 0x0a, 0x0a, 0x0a, 0x0a,                                  // cmp dword ptr [rbx], 0x0a0a0a0a
    0x0f, 0x85, 0xed, 0x00, 0x00, 0x00,                                  // jne fail
    // # 2: cmpxchg16b, unlocked and locked.
    0xbf, 0x02, 0x00, 0x00, 0x00,                                        // mov edi, 2
    0xbe, 0x00, 0x00, 0x23, 0x00,                                        // mov esi, 0x230000
    0x31, 0xc0,                                                          // xor eax, eax
    0x31, 0xd2,                                                          // xor edx, edx
    0xbb, 0x11, 0x11, 0x00, 0x00,                                        // mov ebx, 0x1111
    0xb9, 0x22, 0x22, 0x00, 0x00,                                        // mov ecx, 0x2222
    0x48, 0x89, 0x06,                                                    // mov [rsi], rax
    0x48, 0x89, 0x56, 0x08,                                              // mov [rsi+8], rdx
    0x48, 0x0f, 0xc7, 0x0e,                                              // cmpxchg16b [rsi]
    0x0f, 0x85, 0xc4, 0x00, 0x00, 0x00,                                  // jnz fail
    0x48, 0x39, 0x4e, 0x08,                                              // cmp [rsi+8], rcx
    0x0f, 0x85, 0xba, 0x00, 0x00, 0x00,                                  // jne fail
    0xb8, 0x11, 0x11, 0x00, 0x00,                                        // mov eax, 0x1111
    0xba, 0x22, 0x22, 0x00, 0x00,                                        // mov edx, 0x2222
    0xbb, 0x33, 0x33, 0x00, 0x00,                                        // mov ebx, 0x3333
    0xf0, 0x48, 0x0f, 0xc7, 0x0e,                                        // lock cmpxchg16b [rsi]
    0x0f, 0x85, 0xa0, 0x00, 0x00, 0x00,                                  // jnz fail
    0x48, 0x39, 0x1e,                                                    // cmp [rsi], rbx
    0x0f, 0x85, 0x97, 0x00, 0x00, 0x00,                                  // jne fail
    // # 3: a breakpoint, and back.
    0xbf, 0x03, 0x00, 0x00, 0x00,                                        // mov edi, 3
    0xbb, 0x30, 0x60, 0x20, 0x00,                                        // mov ebx, 0x206030
    0xb8, 0xf7, 0x01, 0x10, 0x00,                                        // mov eax, offset breakpoint
    0x66, 0x89, 0x03,                                                    // mov word ptr [rbx], ax
    0xc7, 0x43, 0x02, 0x08, 0x00, 0x00, 0x8e,                            // mov dword ptr [rbx+2], 0x8e000008
    0xc1, 0xe8, 0x10,                                                    // shr eax, 16
    0x66, 0x89, 0x43, 0x06,                                              // mov word ptr [rbx+6], ax
    0x48, 0xc7, 0x43, 0x08, 0x00, 0x00, 0x00, 0x00,                      // mov qword ptr [rbx+8], 0
    0x0f, 0x01, 0x1c, 0x25, 0x1e, 0x02, 0x10, 0x00,                      // lidt [idt_pointer]
    0x31, 0xf6,                                                          // xor esi, esi
    0xcc,                                                                // int3
    0x81, 0xfe, 0x34, 0x12, 0x00, 0x00,                                  // cmp esi, 0x1234
    0x75, 0x5c,                                                          // jne fail
    // # 4: xsave and xrstor, where the processor has them.
    0xbf, 0x04, 0x00, 0x00, 0x00,                                        // mov edi, 4
    0xb8, 0x01, 0x00, 0x00, 0x00,                                        // mov eax, 1
    0x0f, 0xa2,                                                          // cpuid
    0x0f, 0xba, 0xe1, 0x1a,                                              // bt ecx, 26
    0x73, 0x45,                                                          // jnc done
    0x0f, 0x20, 0xe0,                                                    // mov rax, cr4
    0x0d, 0x00, 0x00, 0x04, 0x00,                                        // or eax, 0x40000
    0x0f, 0x22, 0xe0,                                                    // mov cr4, rax
    0x31, 0xc9,                                                          // xor ecx, ecx
    0x0f, 0x01, 0xd0,                                                    // xgetbv
    0x83, 0xc8, 0x03,                                                    // or eax, 3
    0x0f, 0x01, 0xd1,                                                    // xsetbv
    0xb8, 0xaa, 0x55, 0x00, 0x00,                                        // mov eax, 0x55aa
    0x66, 0x48, 0x0f, 0x6e, 0xc0,                                        // movq xmm0, rax
    0xb8, 0x03, 0x00, 0x00, 0x00,                                        // mov eax, 3
    0x31, 0xd2,                                                          // xor edx, edx
    0xbb, 0x00, 0x00, 0x22, 0x00,                                        // mov ebx, 0x220000
    0x48, 0x0f, 0xae, 0x23,                                              // xsave64 [rbx]
    0x66, 0x0f, 0xef, 0xc0,                                              // pxor xmm0, xmm0
    0x48, 0x0f, 0xae, 0x2b,                                              // xrstor64 [rbx]
    0x66, 0x48, 0x0f, 0x7e, 0xc1,                                        // movq rcx, xmm0
    0x81, 0xf9, 0xaa, 0x55, 0x00, 0x00,                                  // cmp ecx, 0x55aa
    0x75, 0x05,                                                          // jne fail
    // done:
    0xbf, 0x10, 0x00, 0x00, 0x00,                                        // mov edi, 0x10
    // fail:
    // # isa-debug-exit: QEMU ends with 2 * edi + 1.
    0x89, 0xf8,                                                          // mov eax, edi
    0xe7, 0xf4,                                                          // out 0xf4, eax
    // stop:
    0xf4,                                                                // hlt
    0xeb, 0xfd,                                                          // jmp stop
    // breakpoint:
    0xbe, 0x34, 0x12, 0x00, 0x00,                                        // mov esi, 0x1234
    0x48, 0xcf,                                                          // iretq
    0x66, 0x90,                                                          // .balign 8
    // gdt:
    0x00, 0x00, 0x00, 0x00, 0x00, 0x00, 0x00, 0x00,                      // .quad 0
    0xff, 0xff, 0x00, 0x00, 0x00, 0x9a, 0xaf, 0x00,                      // .quad 0x00af9a000000ffff
    0xff, 0xff, 0x00, 0x00, 0x00, 0x92, 0xcf, 0x00,                      // .quad 0x00cf92000000ffff
    // gdt_pointer:
    0x17, 0x00,                                                          // .word 23
    0x00, 0x02, 0x10, 0x00,                                              // .long gdt
    // idt_pointer:
    0xff, 0x0f,                                                          // .word 0xfff
    0x00, 0x60, 0x20, 0x00, 0x00, 0x00, 0x00, 0x00,                      // .quad 0x206000
];

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn exit_codes_name_their_step() {
        assert_eq!(failed_step(3), Some("switching page tables"));
        assert_eq!(failed_step(9), Some("saving and restoring extended registers"));
        assert_eq!(failed_step(SUCCESS), None);
        assert_eq!(failed_step(0), None);
        assert_eq!(failed_step(134), None);
        assert_eq!(failed_step(i32::MIN), None);
    }
}
