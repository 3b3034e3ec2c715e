# From where a multiboot loader leaves the processor (32-bit, no paging) to the kernel's entry in long mode.
# The names in capitals are defined on the command line.

        .code32
        .globl _start
header: .long 0x1BADB002, 0, -0x1BADB002

_start: cli
        cld
        movl $low_stub, %esi
        movl $LOW_STUB, %edi
        movl $1024, %ecx
        rep movsl
        movl $0x1FF, 0xFEE000F0         # the local APIC on, its spurious vector 255,
        movl $0x700, 0xFEE00350         # and LINT0 for the 8259's interrupts: where the firmware did not (Xen's)
        lgdt own_gdt
        movl $0x6A0, %eax               # PAE, PGE, OSFXSR, OSXMMEXCPT
        movl %eax, %cr4
        movl $PAGE_TABLE, %eax
        movl %eax, %cr3
        movl $0xC0000080, %ecx          # EFER: SCE, LME, NXE
        movl $0x901, %eax
        xorl %edx, %edx
        wrmsr
        movl $0x80050033, %eax          # PG, AM, WP, NE, ET, MP, PE
        movl %eax, %cr0
        ljmpl $8, $long_mode

        .code64
long_mode:
        lgdt nt_gdt(%rip)
        lidt nt_idt(%rip)
        movl $0x18, %eax
        movl %eax, %ss
        movl $0x2B, %eax
        movl %eax, %ds
        movl %eax, %es
        movl %eax, %fs
        movl %eax, %gs
        leaq registers(%rip), %rsi
1:      lodsq
        movl %eax, %ecx
        testl %ecx, %ecx
        jz 2f
        lodsq
        movq %rax, %rdx
        shrq $32, %rdx
        wrmsr
        jmp 1b
2:      movabsq $STACK, %rsp
        movabsq $ENTRY, %rax
        pushq $0x10
        pushq %rax
        lretq

        .balign 8
gdt:    .quad 0, 0x00209B0000000000, 0x00CF93000000FFFF
own_gdt: .word 23
        .long gdt
nt_gdt: .word 0x4F
        .quad GDT
nt_idt: .word 0xFFF
        .quad IDT
        .balign 8
registers:
        .quad 0xC0000101, GS_BASE
        .quad 0xC0000102, KERNEL_GS_BASE
        .quad 0xC0000081, 0x0023001000000000
        .quad 0xC0000082, LSTAR
        .quad 0xC0000084, 0x4700
        .quad 0

        .balign 4096
low_stub:
        .fill 4096, 1, 0
