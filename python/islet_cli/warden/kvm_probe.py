"""Create a KVM virtual machine, run one `hlt` in it, and exit with 0 if that worked.

Run as a process of its own by `accel`, because any of these calls may hang. x86_64 only.

Source: Linux Documentation/virt/kvm/api.rst (KVM_CREATE_VM, KVM_SET_USER_MEMORY_REGION, KVM_RUN).
"""

import ctypes
import fcntl
import mmap
import os
import struct
import sys

_CREATE_VM = 0xAE01
_GET_VCPU_MMAP_SIZE = 0xAE04
_CREATE_VCPU = 0xAE41
_SET_USER_MEMORY_REGION = 0x4020AE46
_RUN = 0xAE80
_GET_SREGS = 0x8138AE83
_SET_SREGS = 0x4138AE84
_SET_REGS = 0x4090AE82
_EXIT_HLT = 5
_SREGS_SIZE = 312
_REGS_SIZE = 144
_RIP_OFFSET = 128
_HLT = 0xF4
_PAGE = 4096


def main() -> int:
    """Return 0 when the guest halted as it was told."""
    kvm = os.open("/dev/kvm", os.O_RDWR | os.O_CLOEXEC)
    vm = fcntl.ioctl(kvm, _CREATE_VM, 0)
    memory = mmap.mmap(-1, _PAGE)
    memory[0] = _HLT
    address = ctypes.addressof(ctypes.c_char.from_buffer(memory))
    fcntl.ioctl(vm, _SET_USER_MEMORY_REGION, struct.pack("<IIQQQ", 0, 0, 0, _PAGE, address))
    vcpu = fcntl.ioctl(vm, _CREATE_VCPU, 0)
    run = mmap.mmap(vcpu, fcntl.ioctl(kvm, _GET_VCPU_MMAP_SIZE, 0))
    special = bytearray(_SREGS_SIZE)
    fcntl.ioctl(vcpu, _GET_SREGS, special)
    # The code segment is the first member: base (u64), limit (u32), selector (u16). It begins at address 0.
    special[0:8] = bytes(8)
    special[12:14] = bytes(2)
    fcntl.ioctl(vcpu, _SET_SREGS, bytes(special))
    registers = bytearray(_REGS_SIZE)
    struct.pack_into("<QQ", registers, _RIP_OFFSET, 0, 2)
    fcntl.ioctl(vcpu, _SET_REGS, bytes(registers))
    fcntl.ioctl(vcpu, _RUN, 0)
    (reason,) = struct.unpack_from("<I", run, 8)
    return 0 if reason == _EXIT_HLT else 1


if __name__ == "__main__":
    sys.exit(main())
