/*
 * vmi: virtual machine introspection from C. See docs/c.md.
 *
 * Made by cbindgen from the sources of crates/vmi-capi; do not edit.
 */

#ifndef VMI_H
#define VMI_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

/**
 * An address that is not known.
 */
#define VMI_UNKNOWN_ADDRESS 18446744073709551615ull

/**
 * A process, user or group id that is not known.
 */
#define VMI_UNKNOWN_ID 4294967295

/**
 * No limit of time.
 */
#define VMI_FOREVER 18446744073709551615ull

/**
 * Guest memory can be written.
 */
#define VMI_CAN_WRITE_MEMORY 1

/**
 * vCPU registers can be read.
 */
#define VMI_CAN_READ_REGISTERS 2

/**
 * vCPU registers can be set.
 */
#define VMI_CAN_WRITE_REGISTERS 4

/**
 * The guest can be paused and resumed.
 */
#define VMI_CAN_PAUSE 8

/**
 * Breakpoints, watchpoints and single steps can be had.
 */
#define VMI_CAN_REPORT_EVENTS 16

/**
 * The source does not tell a segment's attributes.
 */
#define VMI_UNKNOWN_ATTRIBUTES 65535

/**
 * Bits of `known` in vmi_registers: which of its members the source tells. The general registers, RIP and RFLAGS are always known. Setting registers, what is not
 * known stays as it is.
 */
#define VMI_KNOWN_CR0 1

/**
 * CR2 is known.
 */
#define VMI_KNOWN_CR2 (1 << 1)

/**
 * CR3 is known.
 */
#define VMI_KNOWN_CR3 (1 << 2)

/**
 * CR4 is known.
 */
#define VMI_KNOWN_CR4 (1 << 3)

/**
 * CR8 is known.
 */
#define VMI_KNOWN_CR8 (1 << 4)

/**
 * XCR0 is known.
 */
#define VMI_KNOWN_XCR0 (1 << 5)

/**
 * EFER is known.
 */
#define VMI_KNOWN_EFER (1 << 6)

/**
 * STAR is known.
 */
#define VMI_KNOWN_STAR (1 << 7)

/**
 * LSTAR is known.
 */
#define VMI_KNOWN_LSTAR (1 << 8)

/**
 * CSTAR is known.
 */
#define VMI_KNOWN_CSTAR (1 << 9)

/**
 * SFMASK is known.
 */
#define VMI_KNOWN_SFMASK (1 << 10)

/**
 * KERNEL_GS_BASE is known.
 */
#define VMI_KNOWN_KERNEL_GS_BASE (1 << 11)

/**
 * PAT is known.
 */
#define VMI_KNOWN_PAT (1 << 12)

/**
 * SYSENTER_CS is known.
 */
#define VMI_KNOWN_SYSENTER_CS (1 << 13)

/**
 * SYSENTER_ESP is known.
 */
#define VMI_KNOWN_SYSENTER_ESP (1 << 14)

/**
 * SYSENTER_EIP is known.
 */
#define VMI_KNOWN_SYSENTER_EIP (1 << 15)

/**
 * CS is known.
 */
#define VMI_KNOWN_CS (1 << 16)

/**
 * DS is known.
 */
#define VMI_KNOWN_DS (1 << 17)

/**
 * ES is known.
 */
#define VMI_KNOWN_ES (1 << 18)

/**
 * FS is known.
 */
#define VMI_KNOWN_FS (1 << 19)

/**
 * GS is known.
 */
#define VMI_KNOWN_GS (1 << 20)

/**
 * SS is known.
 */
#define VMI_KNOWN_SS (1 << 21)

/**
 * LDT is known.
 */
#define VMI_KNOWN_LDT (1 << 22)

/**
 * TR is known.
 */
#define VMI_KNOWN_TR (1 << 23)

/**
 * GDTR is known.
 */
#define VMI_KNOWN_GDTR (1 << 24)

/**
 * IDTR is known.
 */
#define VMI_KNOWN_IDTR (1 << 25)

/**
 * The debug registers are known.
 */
#define VMI_KNOWN_DR (1 << 26)

/**
 * The system's list: of Linux that of tasks, of Windows PsActiveProcessHead.
 */
#define VMI_PROCESS_VIEW_LIST 1

/**
 * The table of ids: of Linux the one that the guest's own /proc is made from, of Windows PspCidTable.
 */
#define VMI_PROCESS_VIEW_ID_TABLE 2

/**
 * Of Linux: the children of each thread, from the first task on.
 */
#define VMI_PROCESS_VIEW_CHILDREN 4

/**
 * Of Windows: a thread that belongs to it, in the table of ids or found by its pool tag.
 */
#define VMI_PROCESS_VIEW_THREADS 8

/**
 * Of Windows: the handle that csrss.exe holds to each process that it serves.
 */
#define VMI_PROCESS_VIEW_SUBSYSTEM 16

/**
 * Of Windows: its pool tag, in physical memory.
 */
#define VMI_PROCESS_VIEW_POOL 32

/**
 * Memory is read: a bit of `access`, and of the rights of a view.
 */
#define VMI_ACCESS_READ 1

/**
 * Memory is written.
 */
#define VMI_ACCESS_WRITE 2

/**
 * An instruction is fetched.
 */
#define VMI_ACCESS_EXECUTE 4

/**
 * Major version of this header.
 */
#define VMI_VERSION_MAJOR 0

/**
 * Minor version of this header.
 */
#define VMI_VERSION_MINOR 1

/**
 * Patch version of this header.
 */
#define VMI_VERSION_PATCH 0

/**
 * How a call went.
 */
typedef enum {
  /**
   * It did what was asked.
   */
  VMI_STATUS_OK = 0,
  /**
   * There is no more: no further row of a list, no event within the time.
   */
  VMI_STATUS_END = 1,
  /**
   * A pointer or handle that is needed is NULL.
   */
  VMI_STATUS_NULL = 2,
  /**
   * The handle was closed, or never was one.
   */
  VMI_STATUS_CLOSED = 3,
  /**
   * The handle stands for something else.
   */
  VMI_STATUS_WRONG_HANDLE = 4,
  /**
   * An argument has no meaning: an unknown constant, text that is not UTF-8.
   */
  VMI_STATUS_ARGUMENT = 5,
  /**
   * The object cannot do this now: a second event session, a trap while an event is held.
   */
  VMI_STATUS_STATE = 6,
  /**
   * A callback asked to stop.
   */
  VMI_STATUS_CALLBACK = 7,
  /**
   * A defect of this library. The object that was used may be in an undefined state: close it.
   */
  VMI_STATUS_INTERNAL = 8,
  /**
   * No memory at a guest-physical address.
   */
  VMI_STATUS_HOLE = 16,
  /**
   * The page tables do not map a virtual address.
   */
  VMI_STATUS_FAULT = 17,
  /**
   * The page is not in memory: the system has put its contents elsewhere.
   */
  VMI_STATUS_PAGED_OUT = 18,
  /**
   * Memory that can be read but not written.
   */
  VMI_STATUS_READ_ONLY = 19,
  /**
   * A range leaves the address range.
   */
  VMI_STATUS_OUT_OF_RANGE = 20,
  /**
   * A string without an end within the limit.
   */
  VMI_STATUS_UNTERMINATED = 21,
  /**
   * A structure of the guest that contradicts itself.
   */
  VMI_STATUS_CORRUPT = 22,
  /**
   * More elements than a bound.
   */
  VMI_STATUS_LIMIT = 23,
  /**
   * No such symbol.
   */
  VMI_STATUS_NO_SYMBOL = 24,
  /**
   * No such type or member.
   */
  VMI_STATUS_NO_TYPE = 25,
  /**
   * No such object in the guest, as a process id that no process has.
   */
  VMI_STATUS_NO_OBJECT = 26,
  /**
   * The guest runs, and changed this each time it was read.
   */
  VMI_STATUS_CHANGING = 27,
  /**
   * An object of a running guest went away while it was read.
   */
  VMI_STATUS_GONE = 28,
  /**
   * The source cannot do this.
   */
  VMI_STATUS_UNSUPPORTED = 29,
  /**
   * The machine is no more.
   */
  VMI_STATUS_ENDED = 30,
  /**
   * The back end failed.
   */
  VMI_STATUS_DRIVER = 31,
  /**
   * The target could not be opened.
   */
  VMI_STATUS_OPEN = 32,
  /**
   * No operating system was recognised.
   */
  VMI_STATUS_ATTACH = 33,
  /**
   * An image could not be written.
   */
  VMI_STATUS_WRITE_IMAGE = 34,
  /**
   * Something else; the message says what.
   */
  VMI_STATUS_OTHER = 35,
} vmi_status;

/**
 * Which system a guest runs.
 */
typedef enum {
  /**
   * None of the others.
   */
  VMI_SYSTEM_UNKNOWN = 0,
  /**
   * Linux.
   */
  VMI_SYSTEM_LINUX = 1,
  /**
   * Windows.
   */
  VMI_SYSTEM_WINDOWS = 2,
} vmi_system;

/**
 * How virtual addresses are translated.
 */
typedef enum {
  /**
   * Not at all, or not known.
   */
  VMI_PAGING_MODE_NONE = 0,
  /**
   * 32-bit paging, two levels.
   */
  VMI_PAGING_MODE_BITS32 = 1,
  /**
   * PAE, three levels.
   */
  VMI_PAGING_MODE_PAE = 2,
  /**
   * 64-bit with four levels.
   */
  VMI_PAGING_MODE_LEVEL4 = 3,
  /**
   * 64-bit with five levels.
   */
  VMI_PAGING_MODE_LEVEL5 = 4,
} vmi_paging_mode;

/**
 * What touched memory.
 */
typedef enum {
  /**
   * The back end does not tell.
   */
  VMI_ACCESS_ORIGIN_UNKNOWN = 0,
  /**
   * The walk of page tables towards the linear address.
   */
  VMI_ACCESS_ORIGIN_WALK = 1,
  /**
   * The access by the linear address itself.
   */
  VMI_ACCESS_ORIGIN_LINEAR = 2,
} vmi_access_origin;

/**
 * How an event is answered.
 */
typedef enum {
  /**
   * The guest goes on, as if nobody had watched.
   */
  VMI_ACTION_RESUME = 0,
  /**
   * The vCPU runs one instruction, after which there is an event of kind VMI_EVENT_KIND_STEP.
   */
  VMI_ACTION_STEP = 1,
  /**
   * For callbacks: the guest goes on, and vmi_events_run returns.
   */
  VMI_ACTION_END = 2,
  /**
   * What caused the event is not done: the register keeps its value.
   */
  VMI_ACTION_DENY = 3,
  /**
   * The guest gets the breakpoint or exception, even where it came from a trap.
   */
  VMI_ACTION_REINJECT = 4,
  /**
   * The hypervisor emulates the instruction, which does not spring the trap again: see vmi_reply. Not for callbacks.
   */
  VMI_ACTION_EMULATE = 5,
} vmi_action;

/**
 * A control register whose writes can be watched.
 */
typedef enum {
  /**
   * CR0: paging, write protection.
   */
  VMI_CONTROL_REGISTER_CR0 = 0,
  /**
   * CR3: the page tables.
   */
  VMI_CONTROL_REGISTER_CR3 = 3,
  /**
   * CR4: extensions.
   */
  VMI_CONTROL_REGISTER_CR4 = 4,
  /**
   * XCR0: which processor state XSAVE keeps.
   */
  VMI_CONTROL_REGISTER_XCR0 = 256,
  /**
   * This and above: another one, by the hypervisor's own number.
   */
  VMI_CONTROL_REGISTER_OTHER = 65536,
} vmi_control_register;

/**
 * A descriptor-table register.
 */
typedef enum {
  /**
   * The global descriptor table.
   */
  VMI_DESCRIPTOR_TABLE_GDTR = 0,
  /**
   * The interrupt descriptor table.
   */
  VMI_DESCRIPTOR_TABLE_IDTR = 1,
  /**
   * The local descriptor table.
   */
  VMI_DESCRIPTOR_TABLE_LDTR = 2,
  /**
   * The task register.
   */
  VMI_DESCRIPTOR_TABLE_TR = 3,
  /**
   * This and above: another one, by the hypervisor's own number.
   */
  VMI_DESCRIPTOR_TABLE_OTHER = 65536,
} vmi_descriptor_table;

/**
 * How an instruction is emulated.
 */
typedef enum {
  /**
   * As it is.
   */
  VMI_EMULATION_PLAIN = 0,
  /**
   * Without its writes and other lasting effects.
   */
  VMI_EMULATION_WITHOUT_WRITES = 1,
  /**
   * With `bytes` in place of what it reads of memory.
   */
  VMI_EMULATION_READING = 2,
  /**
   * With `bytes`, 16 of them, in place of the instruction itself.
   */
  VMI_EMULATION_INSTRUCTION = 3,
} vmi_emulation;

/**
 * One thing that a back end may be able to report (the kinds of events), or an answer that it may be able to carry out. As a bit of vmi_events_get_abilities: 1 shifted left
 * by it.
 */
typedef enum {
  /**
   * VMI_EVENT_KIND_SOFTWARE_BREAKPOINT.
   */
  VMI_EVENT_ABILITY_SOFTWARE_BREAKPOINT = 0,
  /**
   * VMI_EVENT_KIND_HARDWARE_BREAKPOINT.
   */
  VMI_EVENT_ABILITY_HARDWARE_BREAKPOINT = 1,
  /**
   * VMI_EVENT_KIND_WRITE, VMI_EVENT_KIND_READ, VMI_EVENT_KIND_ACCESS.
   */
  VMI_EVENT_ABILITY_WATCHPOINT = 2,
  /**
   * VMI_EVENT_KIND_MEMORY.
   */
  VMI_EVENT_ABILITY_MEMORY_ACCESS = 3,
  /**
   * VMI_EVENT_KIND_STEP as a trap.
   */
  VMI_EVENT_ABILITY_INSTRUCTIONS = 4,
  /**
   * VMI_EVENT_KIND_CONTROL_REGISTER.
   */
  VMI_EVENT_ABILITY_CONTROL_REGISTER = 5,
  /**
   * VMI_EVENT_KIND_MSR.
   */
  VMI_EVENT_ABILITY_MODEL_REGISTER = 6,
  /**
   * VMI_EVENT_KIND_CPUID.
   */
  VMI_EVENT_ABILITY_IDENTIFICATION = 7,
  /**
   * VMI_EVENT_KIND_DEBUG_EXCEPTION.
   */
  VMI_EVENT_ABILITY_DEBUG_EXCEPTION = 8,
  /**
   * VMI_EVENT_KIND_OWN_BREAKPOINT.
   */
  VMI_EVENT_ABILITY_GUEST_BREAKPOINT = 9,
  /**
   * VMI_EVENT_KIND_PRIVILEGED_CALL.
   */
  VMI_EVENT_ABILITY_PRIVILEGED_CALL = 10,
  /**
   * VMI_EVENT_KIND_GUEST_REQUEST.
   */
  VMI_EVENT_ABILITY_GUEST_REQUEST = 11,
  /**
   * VMI_EVENT_KIND_INTERRUPT.
   */
  VMI_EVENT_ABILITY_INTERRUPT = 12,
  /**
   * VMI_EVENT_KIND_DESCRIPTOR_TABLE.
   */
  VMI_EVENT_ABILITY_DESCRIPTOR_TABLE = 13,
  /**
   * VMI_EVENT_KIND_EMULATION_FAILURE.
   */
  VMI_EVENT_ABILITY_EMULATION_FAILURE = 14,
  /**
   * VMI_EVENT_KIND_EXIT.
   */
  VMI_EVENT_ABILITY_EXIT = 15,
  /**
   * Registers in the answer to an event.
   */
  VMI_EVENT_ABILITY_SET_REGISTERS = 16,
  /**
   * VMI_ACTION_STEP.
   */
  VMI_EVENT_ABILITY_STEP = 17,
  /**
   * VMI_ACTION_DENY.
   */
  VMI_EVENT_ABILITY_DENY = 18,
  /**
   * VMI_ACTION_EMULATE.
   */
  VMI_EVENT_ABILITY_EMULATE = 19,
  /**
   * VMI_ACTION_REINJECT.
   */
  VMI_EVENT_ABILITY_REINJECT = 20,
  /**
   * Views of memory.
   */
  VMI_EVENT_ABILITY_VIEW = 21,
  /**
   * vmi_events_inject.
   */
  VMI_EVENT_ABILITY_INJECT = 22,
} vmi_event_ability;

/**
 * What springs a trap, or what an event is. Which of them a back end has, vmi_events_get_abilities tells: QEMU's gdb stub has the first five and steps, Xen most.
 */
typedef enum {
  /**
   * An instruction is about to run, found by a breakpoint instruction or what the back end has in its place.
   */
  VMI_EVENT_KIND_SOFTWARE_BREAKPOINT = 0,
  /**
   * An instruction is about to run, found by a debug register: it changes no guest memory, and there are few.
   */
  VMI_EVENT_KIND_HARDWARE_BREAKPOINT = 1,
  /**
   * Memory was written.
   */
  VMI_EVENT_KIND_WRITE = 2,
  /**
   * Memory was read.
   */
  VMI_EVENT_KIND_READ = 3,
  /**
   * Memory was read or written.
   */
  VMI_EVENT_KIND_ACCESS = 4,
  /**
   * The vCPU ran one instruction. As a trap: each instruction of the vCPU `which` is an event; else the one that VMI_ACTION_STEP let it run.
   */
  VMI_EVENT_KIND_STEP = 5,
  /**
   * Not for traps: it stopped for another reason.
   */
  VMI_EVENT_KIND_STOP = 6,
  /**
   * Guest-physical memory is about to be touched in one of the ways of `access`.
   */
  VMI_EVENT_KIND_MEMORY = 7,
  /**
   * A control register, `which` as a vmi_control_register, is written.
   */
  VMI_EVENT_KIND_CONTROL_REGISTER = 8,
  /**
   * The model-specific register of number `which` is written.
   */
  VMI_EVENT_KIND_MSR = 9,
  /**
   * CPUID is run.
   */
  VMI_EVENT_KIND_CPUID = 10,
  /**
   * A debug exception (vector 1) is raised.
   */
  VMI_EVENT_KIND_DEBUG_EXCEPTION = 11,
  /**
   * INT3 is run that is the guest's own.
   */
  VMI_EVENT_KIND_OWN_BREAKPOINT = 12,
  /**
   * A descriptor-table register is read or written.
   */
  VMI_EVENT_KIND_DESCRIPTOR_TABLE = 13,
  /**
   * The guest asks for an event by a hypercall.
   */
  VMI_EVENT_KIND_GUEST_REQUEST = 14,
  /**
   * The guest calls a higher privilege.
   */
  VMI_EVENT_KIND_PRIVILEGED_CALL = 15,
  /**
   * Not for traps: an interrupt is delivered.
   */
  VMI_EVENT_KIND_INTERRUPT = 16,
  /**
   * The hypervisor was to emulate an instruction and cannot.
   */
  VMI_EVENT_KIND_EMULATION_FAILURE = 17,
  /**
   * Every exit to the hypervisor.
   */
  VMI_EVENT_KIND_EXIT = 18,
  /**
   * Not for traps: something that has no name here, by the hypervisor's number in `which`.
   */
  VMI_EVENT_KIND_OTHER = 19,
} vmi_event_kind;

/**
 * Formats of image files that can be written.
 */
typedef enum {
  /**
   * Memory at its physical address; ranges without memory are holes of the file.
   */
  VMI_FORMAT_RAW = 0,
  /**
   * LiME.
   */
  VMI_FORMAT_LIME = 1,
  /**
   * AVML, version 2.
   */
  VMI_FORMAT_AVML = 2,
  /**
   * An ELF core.
   */
  VMI_FORMAT_ELF = 3,
  /**
   * kdump, as makedumpfile writes it.
   */
  VMI_FORMAT_KDUMP = 4,
} vmi_format;

/**
 * What vmi_events_inject puts into a vCPU.
 */
typedef enum {
  /**
   * An external interrupt, of a vector from 32 on.
   */
  VMI_INJECTION_KIND_INTERRUPT = 0,
  /**
   * An exception that the processor raises, of a vector below 32.
   */
  VMI_INJECTION_KIND_EXCEPTION = 1,
  /**
   * A page fault (vector 14): CR2 becomes `at`.
   */
  VMI_INJECTION_KIND_PAGE_FAULT = 2,
} vmi_injection_kind;

/**
 * What a vmi_mapping tells.
 */
typedef enum {
  /**
   * A run of pages that are mapped one behind the other.
   */
  VMI_MAPPING_KIND_PAGES = 0,
  /**
   * A page table that was gone through before: behind it lies what lies at `target`, a virtual address.
   */
  VMI_MAPPING_KIND_REPEATED = 1,
  /**
   * Something that could not be read; see `message`. The rest goes on behind it.
   */
  VMI_MAPPING_KIND_UNREADABLE = 2,
} vmi_mapping_kind;

/**
 * Why a call failed: kind, message, and how far it got. Made by the call, closed by the caller with vmi_error_close. Never changes; any thread may use it.
 */
typedef struct vmi_error vmi_error;

/**
 * Something that a vCPU did. It stands still (with QEMU's gdb stub: all of them do) until the event is answered or closed, until the next one is asked for, or until the
 * session is closed. Any thread may use it.
 */
typedef struct vmi_event vmi_event;

/**
 * An event session. The guest runs on, and each trap that is sprung is an event of vmi_events_next. One session for a machine at a time. Any thread may use it; while one
 * waits for an event, calls of others take up to 50 ms.
 */
typedef struct vmi_events vmi_events;

/**
 * An operating system that was found in a machine. Any thread may use it, several at once.
 */
typedef struct vmi_guest vmi_guest;

/**
 * Records of the kernel's log. Any thread may use it; each row is given once.
 */
typedef struct vmi_log vmi_log;

/**
 * One machine: a memory image, a snapshot or a running guest. Any thread may use it, several at once.
 */
typedef struct vmi_machine vmi_machine;

/**
 * Memory that addresses are of: guest-physical, of the kernel, of a process, of any page tables. Any thread may use it, several at once.
 *
 * A read fills all of what was asked for, or fails; vmi_error_done says how many bytes were good. Only vmi_memory_read_lossy pads.
 */
typedef struct vmi_memory vmi_memory;

/**
 * Memory areas. Any thread may use it; each row is given once.
 */
typedef struct vmi_memory_areas vmi_memory_areas;

/**
 * Kernel modules. Any thread may use it; each row is given once.
 */
typedef struct vmi_modules vmi_modules;

/**
 * What is known of a target beforehand, for vmi_machine_open and vmi_guest_attach. One may serve many calls. Any thread may use it.
 */
typedef struct vmi_options vmi_options;

/**
 * A guest that stands still until this is closed. Any thread may use it.
 */
typedef struct vmi_pause vmi_pause;

/**
 * Processes. Any thread may use it; each row is given once.
 */
typedef struct vmi_processes vmi_processes;

/**
 * Processes of all views. Any thread may use it; each row is given once.
 */
typedef struct vmi_seen_processes vmi_seen_processes;

/**
 * Strings. Any thread may use it; each one is given once.
 */
typedef struct vmi_strings vmi_strings;

/**
 * Symbols. Any thread may use it; each row is given once.
 */
typedef struct vmi_symbols vmi_symbols;

/**
 * Running guests that were found. Any thread may use it; each row is given once.
 */
typedef struct vmi_targets vmi_targets;

/**
 * Threads. Any thread may use it; each row is given once.
 */
typedef struct vmi_threads vmi_threads;

/**
 * What happened. What the kind does not have is 0, or VMI_UNKNOWN_ADDRESS for addresses.
 */
typedef struct {
  /**
   * What it is: a vmi_event_kind.
   */
  uint32_t kind;
  /**
   * The vCPU that did it.
   */
  uint32_t vcpu;
  /**
   * The instruction of a breakpoint, or the memory that was touched; of VMI_EVENT_KIND_MEMORY the guest-physical address.
   */
  uint64_t at;
  /**
   * The instruction pointer: behind the instruction that touched watched virtual memory, at the instruction of all others.
   */
  uint64_t instruction;
  /**
   * The number of the trap that was sprung; 0 if none was.
   */
  uint64_t trap;
  /**
   * Whether it was answered.
   */
  bool answered;
  /**
   * VMI_EVENT_KIND_DESCRIPTOR_TABLE: whether it is written.
   */
  bool write;
  /**
   * VMI_EVENT_KIND_MEMORY: how it is touched, some of VMI_ACCESS_READ and its siblings.
   */
  uint32_t access;
  /**
   * VMI_EVENT_KIND_MEMORY: what touches it, a vmi_access_origin.
   */
  uint32_t origin;
  /**
   * VMI_EVENT_KIND_MEMORY: the view in which it happened; VMI_UNKNOWN_ID where there are none.
   */
  uint32_t view;
  /**
   * VMI_EVENT_KIND_MEMORY: the linear address.
   */
  uint64_t linear;
  /**
   * The vmi_control_register, the number of the model-specific register, the leaf of CPUID, the vmi_descriptor_table, the vector of the interrupt, the reason of the exit,
   * or the hypervisor's number of something other.
   */
  uint64_t which;
  /**
   * Writes of registers: what is in it when the vCPU goes on, unless that is denied.
   */
  uint64_t new_value;
  /**
   * Writes of registers: what was in it.
   */
  uint64_t old_value;
  /**
   * CPUID: the subleaf. Debug exceptions: the conditions in the bits of DR6, or VMI_UNKNOWN_ADDRESS. Interrupts: CR2, for page faults. Exits: the qualification.
   */
  uint64_t detail;
  /**
   * CPUID, debug exceptions and breakpoints of the guest's own: bytes of the instruction.
   */
  uint32_t length;
  /**
   * Debug exceptions, breakpoints of the guest's own and interrupts: the kind of event as VMX numbers them (Intel SDM, volume 3, table 25-17).
   */
  uint32_t vmx_kind;
  /**
   * Interrupts: the error code, where the vector has one.
   */
  uint32_t error_code;
} vmi_event_info;

/**
 * A segment register.
 */
typedef struct {
  /**
   * Linear address of the segment's first byte.
   */
  uint64_t base;
  /**
   * Last valid offset in bytes.
   */
  uint32_t limit;
  /**
   * The visible part.
   */
  uint16_t selector;
  /**
   * Type and access as in the access rights of a virtual-machine control structure (Intel SDM, volume 3, table 26-2); VMI_UNKNOWN_ATTRIBUTES if the source does not
   * tell.
   */
  uint16_t attributes;
} vmi_segment;

/**
 * The registers of one vCPU.
 */
typedef struct {
  uint64_t rax;
  uint64_t rbx;
  uint64_t rcx;
  uint64_t rdx;
  uint64_t rsi;
  uint64_t rdi;
  uint64_t rsp;
  uint64_t rbp;
  uint64_t r8;
  uint64_t r9;
  uint64_t r10;
  uint64_t r11;
  uint64_t r12;
  uint64_t r13;
  uint64_t r14;
  uint64_t r15;
  uint64_t rip;
  uint64_t rflags;
  uint64_t cr0;
  uint64_t cr2;
  uint64_t cr3;
  uint64_t cr4;
  /**
   * Task priority, in bits 3 to 0.
   */
  uint64_t cr8;
  uint64_t xcr0;
  uint64_t efer;
  uint64_t star;
  uint64_t lstar;
  uint64_t cstar;
  uint64_t sfmask;
  uint64_t kernel_gs_base;
  uint64_t pat;
  uint64_t sysenter_cs;
  uint64_t sysenter_esp;
  uint64_t sysenter_eip;
  vmi_segment cs;
  vmi_segment ds;
  vmi_segment es;
  vmi_segment fs;
  vmi_segment gs;
  vmi_segment ss;
  vmi_segment ldt;
  vmi_segment tr;
  /**
   * Linear address of the global descriptor table.
   */
  uint64_t gdtr_base;
  /**
   * Linear address of the interrupt descriptor table.
   */
  uint64_t idtr_base;
  /**
   * Debug registers 0 to 7; 4 and 5 do not exist.
   */
  uint64_t dr[8];
  /**
   * Last valid offset of the global descriptor table.
   */
  uint16_t gdtr_limit;
  /**
   * Last valid offset of the interrupt descriptor table.
   */
  uint16_t idtr_limit;
  /**
   * Which of the members are known: some of VMI_KNOWN_CR0 and its siblings. The others are 0.
   */
  uint32_t known;
  /**
   * The paging mode that they select: a vmi_paging_mode. Not looked at when registers are set.
   */
  uint32_t paging_mode;
} vmi_registers;

/**
 * An answer to an event. All zero lets the guest go on.
 */
typedef struct {
  /**
   * What becomes of what caused it: a vmi_action.
   */
  uint32_t action;
  /**
   * For VMI_ACTION_EMULATE: a vmi_emulation.
   */
  uint32_t emulation;
  /**
   * What the emulation reads; not looked at by the others.
   */
  const void *bytes;
  /**
   * How many bytes there are.
   */
  size_t byte_count;
  /**
   * Registers to bring to the vCPU before it goes on; NULL for none.
   */
  const vmi_registers *registers;
  /**
   * Whether it then runs one instruction only, as with VMI_ACTION_STEP.
   */
  bool step;
  /**
   * Whether it goes on in the view of memory `view`.
   */
  bool set_view;
  /**
   * A view of vmi_events_create_view; 0 is the guest's memory as it is.
   */
  uint32_t view;
} vmi_reply;

/**
 * A request to be told when a vCPU does something. What its kind does not need is not looked at, and 0 in a literal that names the rest.
 */
typedef struct {
  /**
   * What springs it: a vmi_event_kind.
   */
  uint32_t kind;
  /**
   * First virtual address; of a breakpoint, of the instruction; of VMI_EVENT_KIND_MEMORY the first guest-physical one.
   */
  uint64_t at;
  /**
   * Bytes that are watched; not looked at for breakpoints.
   */
  uint64_t length;
  /**
   * Only while the vCPU runs on page tables with one of these roots (vmi_guest_get_page_tables); NULL for all.
   */
  const uint64_t *roots;
  /**
   * How many roots there are.
   */
  size_t root_count;
  /**
   * VMI_EVENT_KIND_MEMORY: some of VMI_ACCESS_READ and its siblings.
   */
  uint32_t access;
  /**
   * A register or vCPU, as the kind says.
   */
  uint32_t which;
  /**
   * Writes of registers: only if the value changes.
   */
  bool on_change;
} vmi_trap;

/**
 * Takes an event, which it may answer by vmi_event_reply or vmi_event_answer; else it answers by what it returns, a vmi_action. A number that is none, or an action that the
 * back end does not have, lets the guest go on and ends vmi_events_run: with VMI_STATUS_CALLBACK the one, with its error the other. It may call this library, must not throw a
 * C++ exception or jump out, and must not keep the event.
 */
typedef uint32_t (*vmi_event_callback)(vmi_event *event, void *user_data);

/**
 * Told how far a long call is: bytes that are done, and of all. It must not close the machine, throw a C++ exception or jump out.
 */
typedef void (*vmi_progress)(uint64_t done, uint64_t all, void *user_data);

/**
 * What became of an image.
 */
typedef struct {
  /**
   * Bytes of memory in it.
   */
  uint64_t memory;
  /**
   * Bytes that the file takes.
   */
  uint64_t stored;
  /**
   * Bytes of memory that could not be read and are zero in it.
   */
  uint64_t unreadable;
} vmi_written;

/**
 * What a machine is.
 */
typedef struct {
  /**
   * Bytes of guest-physical memory in all regions.
   */
  uint64_t memory_size;
  /**
   * First address behind the highest region.
   */
  uint64_t memory_end;
  /**
   * Regions of the memory map.
   */
  size_t region_count;
  /**
   * How many vCPUs the source shows; 0 if it shows none.
   */
  uint32_t vcpu_count;
  /**
   * What the source can do: some of VMI_CAN_WRITE_MEMORY and its siblings.
   */
  uint32_t capabilities;
  /**
   * Whether memory never changes: an image or a snapshot.
   */
  bool frozen;
} vmi_machine_info;

/**
 * A run of guest-physical memory.
 */
typedef struct {
  /**
   * First address.
   */
  uint64_t start;
  /**
   * First address behind it.
   */
  uint64_t end;
} vmi_region;

/**
 * A part of what page tables map.
 */
typedef struct {
  /**
   * What it is: a vmi_mapping_kind.
   */
  uint32_t kind;
  /**
   * First virtual address; of something unreadable VMI_UNKNOWN_ADDRESS if that is not known.
   */
  uint64_t at;
  /**
   * Bytes; 0 of something unreadable.
   */
  uint64_t length;
  /**
   * Pages: the first guest-physical address. A repeated table: the virtual address where it was gone through.
   */
  uint64_t target;
  /**
   * Bytes of each page; 0 if these are none.
   */
  uint64_t page_size;
  /**
   * Writes are allowed.
   */
  bool write;
  /**
   * Instruction fetches are allowed.
   */
  bool execute;
  /**
   * User mode may access it.
   */
  bool user;
  /**
   * Why it could not be read, valid during the callback; NULL of the others.
   */
  const char *message;
} vmi_mapping;

/**
 * Takes a mapping, valid during the call. 0 goes on; anything else ends the call, which then answers VMI_STATUS_CALLBACK. It must not throw a C++ exception or jump
 * out; it may call this library.
 */
typedef uint32_t (*vmi_mapping_callback)(const vmi_mapping *mapping, void *user_data);

/**
 * A part of a buffer, as offsets into it.
 */
typedef struct {
  /**
   * First byte.
   */
  size_t start;
  /**
   * First byte behind it.
   */
  size_t end;
} vmi_range;

/**
 * Where a virtual address lies in guest-physical memory.
 */
typedef struct {
  /**
   * The guest-physical address.
   */
  uint64_t at;
  /**
   * Bytes of the page that maps it.
   */
  uint64_t page_size;
  /**
   * Writes are allowed.
   */
  bool write;
  /**
   * Instruction fetches are allowed.
   */
  bool execute;
  /**
   * User mode may access the page.
   */
  bool user;
} vmi_translation;

/**
 * A process, as it was when it was listed. Its strings belong to the list: valid until that is closed.
 */
typedef struct {
  /**
   * Process id.
   */
  uint32_t pid;
  /**
   * Id of the parent process, or VMI_UNKNOWN_ID.
   */
  uint32_t parent_pid;
  /**
   * Effective user id, or VMI_UNKNOWN_ID.
   */
  uint32_t uid;
  /**
   * Effective group id, or VMI_UNKNOWN_ID.
   */
  uint32_t gid;
  /**
   * Short name.
   */
  const char *name;
  /**
   * Arguments, the first being the program; NULL if they cannot be read. Behind the last one there is NULL.
   */
  const char *const *arguments;
  /**
   * How many arguments there are.
   */
  size_t argument_count;
  /**
   * When it started, in nanoseconds since 1970; 0 if that is not known.
   */
  uint64_t started;
  /**
   * Root of its page tables, or VMI_UNKNOWN_ADDRESS.
   */
  uint64_t page_table;
  /**
   * Where its structure is in kernel memory: task_struct of a Linux guest, _EPROCESS of a Windows one.
   */
  uint64_t object;
  /**
   * What it is doing, as the letter that ps prints; 0 if that is not known.
   */
  char state;
  /**
   * Whether it is a kernel thread: it has no user memory of its own.
   */
  bool kernel;
} vmi_process;

/**
 * A thread, as it was when it was listed. Its string belongs to the list: valid until that is closed.
 */
typedef struct {
  /**
   * Thread id.
   */
  uint32_t tid;
  /**
   * Id of its process.
   */
  uint32_t pid;
  /**
   * Short name.
   */
  const char *name;
  /**
   * Where its structure is in kernel memory.
   */
  uint64_t object;
  /**
   * What it is doing, as the letter that ps prints; 0 if that is not known.
   */
  char state;
} vmi_thread;

/**
 * How a snapshot was made.
 */
typedef struct {
  /**
   * How long the guest stood still, in nanoseconds.
   */
  uint64_t stood_still;
  /**
   * How long everything took, in nanoseconds.
   */
  uint64_t took;
  /**
   * Bytes of this host's memory that the snapshot takes.
   */
  uint64_t resident;
  /**
   * Bytes of memory that the map names but that were not there.
   */
  uint64_t missing;
} vmi_snapshot_report;

/**
 * A process, and which views of its system know it. Its string belongs to the list: valid until that is closed.
 */
typedef struct {
  /**
   * Process id.
   */
  uint32_t pid;
  /**
   * The views that know it: VMI_PROCESS_VIEW_LIST and its siblings.
   */
  uint32_t known_to;
  /**
   * The views that do not know it. What is in neither the system has not, or it could not be had whole.
   */
  uint32_t unknown_to;
  /**
   * Whether something hides it: it has not ended, and a view does not know it that knows all others.
   */
  bool hidden;
  /**
   * Whether it has ended: views leave it out because of that, one after another.
   */
  bool exited;
  /**
   * Short name.
   */
  const char *name;
  /**
   * Where its structure is in kernel memory: task_struct of a Linux guest, _EPROCESS of a Windows one. VMI_UNKNOWN_ADDRESS if only the scan of physical memory has
   * found it, and nothing there tells.
   */
  uint64_t object;
  /**
   * Where its structure is in physical memory, or VMI_UNKNOWN_ADDRESS.
   */
  uint64_t physical;
} vmi_seen_process;

/**
 * A symbol. Its strings belong to the list: valid until that is closed.
 */
typedef struct {
  /**
   * Name.
   */
  const char *name;
  /**
   * The module that defines it; NULL for the kernel itself.
   */
  const char *module;
  /**
   * Address in the guest.
   */
  uint64_t address;
  /**
   * The letter of nm(1).
   */
  char kind;
} vmi_symbol;

/**
 * A loaded kernel module. Its string belongs to the list: valid until that is closed.
 */
typedef struct {
  /**
   * Name.
   */
  const char *name;
  /**
   * First address.
   */
  uint64_t base;
  /**
   * Bytes of memory it takes, in all its parts.
   */
  uint64_t size;
  /**
   * Where its structure is in kernel memory.
   */
  uint64_t object;
  /**
   * How many hold a reference to it, or VMI_UNKNOWN_ID.
   */
  uint32_t references;
} vmi_module;

/**
 * A run of a process's virtual memory with the same properties. Its string belongs to the list: valid until that is closed.
 */
typedef struct {
  /**
   * First address.
   */
  uint64_t start;
  /**
   * First address behind it.
   */
  uint64_t end;
  /**
   * Offset into the mapped file in bytes.
   */
  uint64_t offset;
  /**
   * The mapped file's path, or the purpose in brackets; NULL if it has none.
   */
  const char *name;
  /**
   * The process may read it.
   */
  bool read;
  /**
   * The process may write it.
   */
  bool write;
  /**
   * The process may run code in it.
   */
  bool execute;
  /**
   * Writes are seen by others that map the same.
   */
  bool shared;
} vmi_memory_area;

/**
 * One record of the kernel's log. Its string belongs to the list: valid until that is closed.
 */
typedef struct {
  /**
   * Its number, counted from boot.
   */
  uint64_t sequence;
  /**
   * Nanoseconds since boot.
   */
  uint64_t nanoseconds;
  /**
   * The text, without a final line end.
   */
  const char *text;
  /**
   * Severity, 0 (emergency) to 7 (debug).
   */
  uint32_t level;
} vmi_log_record;

/**
 * A running guest that was found on this host. Its strings belong to the list: valid until that is closed.
 */
typedef struct {
  /**
   * What vmi_machine_open takes; NULL if there is no way in.
   */
  const char *target;
  /**
   * The guest's name; NULL if it has none.
   */
  const char *name;
  /**
   * How much memory it was given, as whoever started it wrote that; NULL if that is not known.
   */
  const char *memory;
  /**
   * The ways to its memory that are open to this user, best first, with commas between them.
   */
  const char *roads;
  /**
   * What is not possible and why, a sentence in each line; empty if all is.
   */
  const char *problems;
  /**
   * The process that runs it, or VMI_UNKNOWN_ID.
   */
  uint32_t pid;
  /**
   * Whether it can be paused and resumed.
   */
  bool control;
  /**
   * Whether it reports events.
   */
  bool events;
} vmi_target;

/**
 * Where a member is in its structure.
 */
typedef struct {
  /**
   * Offset in bytes from the start of the outermost structure.
   */
  uint64_t offset;
  /**
   * Size in bytes; of a bitfield, of the bytes that hold all of its bits.
   */
  uint64_t size;
  /**
   * Of a bitfield: its lowest bit in the little-endian number at `offset`.
   */
  uint32_t bit_offset;
  /**
   * Of a bitfield: its width in bits; 0 of other members.
   */
  uint32_t bit_width;
} vmi_field;

/**
 * An interrupt or exception.
 */
typedef struct {
  /**
   * What it is: a vmi_injection_kind.
   */
  uint32_t kind;
  /**
   * Its vector; not looked at for page faults.
   */
  uint8_t vector;
  /**
   * Exceptions: whether the vector has an error code (Intel SDM, volume 3, table 6-1).
   */
  bool has_error_code;
  /**
   * The error code of an exception or page fault.
   */
  uint32_t error_code;
  /**
   * Page faults: the linear address.
   */
  uint64_t at;
} vmi_injection;

#ifdef __cplusplus
extern "C" {
#endif // __cplusplus

/**
 * Frees a string that a function of this library gave to the caller. NULL is left alone; each string is freed once.
 *
 * # Safety
 * `string` is NULL, or came from this library as a string that the caller owns, and was not freed before.
 */
void vmi_string_free(char *string);

/**
 * The kind of an error: what the call returned. VMI_STATUS_NULL or VMI_STATUS_CLOSED if `error` is no open error.
 */
vmi_status vmi_error_status(vmi_error *error);

/**
 * What went wrong, where, and why, in words. Never NULL. Belongs to the error: valid until that is closed.
 */
const char *vmi_error_message(vmi_error *error);

/**
 * How many bytes of a read or write were good before it failed. 0 if `error` is no open error.
 */
size_t vmi_error_done(vmi_error *error);

/**
 * The address at which it failed, guest-physical or virtual as the message says; VMI_UNKNOWN_ADDRESS if it has none.
 */
uint64_t vmi_error_address(vmi_error *error);

/**
 * Closes an error. NULL and closed ones are left alone.
 */
void vmi_error_close(vmi_error *error);

/**
 * The name of a status, as "VMI_STATUS_HOLE"; "unknown" for a number that is none. Never freed.
 */
const char *vmi_status_name(uint32_t status);

/**
 * What happened.
 */
vmi_status vmi_event_get_info(vmi_event *event, vmi_event_info *info, vmi_error **error);

/**
 * The registers of the vCPU, as they were when it happened.
 */
vmi_status vmi_event_get_registers(vmi_event *event, vmi_registers *registers, vmi_error **error);

/**
 * Answers an event and closes it. `action` is a vmi_action other than VMI_ACTION_END and VMI_ACTION_EMULATE. `registers`, which may be NULL, are brought to the vCPU before it
 * goes on. With VMI_STATUS_UNSUPPORTED the back end does not have the answer, and the guest goes on as if the event was closed.
 */
vmi_status vmi_event_reply(vmi_event *event,
                           uint32_t action,
                           const vmi_registers *registers,
                           vmi_error **error);

/**
 * As vmi_event_reply, with all that an answer can say.
 *
 * # Safety
 * `registers` of the reply is NULL or good; `bytes` is NULL with a count of 0, or has `byte_count` bytes.
 */
vmi_status vmi_event_answer(vmi_event *event, const vmi_reply *reply, vmi_error **error);

/**
 * Closes an event; the guest goes on if that was not answered yet. NULL and closed ones are left alone.
 */
void vmi_event_close(vmi_event *event);

/**
 * Opens an event session. Closed with vmi_events_close.
 */
vmi_status vmi_events_open(vmi_machine *machine, vmi_events **events, vmi_error **error);

/**
 * Sets a trap, while no event is held; `number` tells it from others.
 *
 * # Safety
 * `roots` of the trap is NULL with a count of 0, or has `root_count` numbers.
 */
vmi_status vmi_events_set_trap(vmi_events *events, const vmi_trap *trap, uint64_t *number, vmi_error **error);

/**
 * Removes a trap, while no event is held. One that is not set is none to remove.
 */
vmi_status vmi_events_remove_trap(vmi_events *events, uint64_t number, vmi_error **error);

/**
 * How many events were let go on unseen, as they happened in other address spaces than asked for. While no event is held.
 */
vmi_status vmi_events_get_passed_over(vmi_events *events, uint64_t *count, vmi_error **error);

/**
 * Waits for the next event, at most so many milliseconds (or VMI_FOREVER): VMI_STATUS_END if there was none. An event that is still held is let go on first, and its handle
 * closed. The new one is closed by vmi_event_reply, vmi_event_close, or the next call.
 */
vmi_status vmi_events_next(vmi_events *events,
                           uint64_t milliseconds,
                           vmi_event **event,
                           vmi_error **error);

/**
 * Calls `callback` with each event and `user_data`, in this thread, for so many milliseconds (or VMI_FOREVER), or until it returns VMI_ACTION_END. `count`, which may be
 * NULL, is how many there were.
 */
vmi_status vmi_events_run(vmi_events *events,
                          uint64_t milliseconds,
                          vmi_event_callback callback,
                          void *user_data,
                          uint64_t *count,
                          vmi_error **error);

/**
 * Closes a session: all traps are gone, and the guest runs. NULL and closed ones are left alone.
 */
void vmi_events_close(vmi_events *events);

/**
 * Finds the operating system inside a machine, with no configuration. `options` may be NULL; vmi_options_add_symbols helps a kernel that does not describe itself.
 * Closed with vmi_guest_close.
 */
vmi_status vmi_guest_attach(vmi_machine *machine,
                            vmi_options *options,
                            vmi_guest **guest,
                            vmi_error **error);

/**
 * Which system it is.
 */
vmi_status vmi_guest_get_system(vmi_guest *guest, vmi_system *system, vmi_error **error);

/**
 * The system and its version in one line. Freed with vmi_string_free.
 */
vmi_status vmi_guest_get_version(vmi_guest *guest, char **version, vmi_error **error);

/**
 * What is remarkable about how this guest was read, one sentence each. Closed with vmi_strings_close.
 */
vmi_status vmi_guest_get_remarks(vmi_guest *guest, vmi_strings **remarks, vmi_error **error);

/**
 * Root of the kernel's own page tables (of a Windows guest those of the process System), and how they translate, for vmi_machine_address_space. `mode` may be NULL.
 */
vmi_status vmi_guest_get_kernel_page_table(vmi_guest *guest,
                                           uint64_t *root,
                                           vmi_paging_mode *mode,
                                           vmi_error **error);

/**
 * How far a Linux kernel was moved from where it was linked, in bytes (KASLR). VMI_STATUS_UNSUPPORTED for a system whose kernel has no such place.
 */
vmi_status vmi_guest_get_slide(vmi_guest *guest,
                               uint64_t *slide,
                               vmi_error **error);

/**
 * Closes a guest. Its machine and what was listed stay. NULL and closed ones are left alone.
 */
void vmi_guest_close(vmi_guest *guest);

/**
 * Writes all memory to an image file, over one that may be there. `format` is a vmi_format. `progress` is called now and then with `user_data`, from this thread; it and
 * `written` may be NULL.
 */
vmi_status vmi_machine_write_image(vmi_machine *machine,
                                   const char * path,
                                   uint32_t format,
                                   vmi_progress progress,
                                   void *user_data,
                                   vmi_written *written,
                                   vmi_error **error);

/**
 * Opens a memory image, compressed or not, or a running guest: "guest.lime", "qemu:/run/guest.qmp". A path need not be UTF-8. `options` may be NULL.
 * Closed with vmi_machine_close.
 */
vmi_status vmi_machine_open(const char * target,
                            vmi_options *options,
                            vmi_machine **machine,
                            vmi_error **error);

/**
 * What the machine is.
 */
vmi_status vmi_machine_get_info(vmi_machine *machine, vmi_machine_info *info, vmi_error **error);

/**
 * The back end and the guest, in words. Freed with vmi_string_free.
 */
vmi_status vmi_machine_get_name(vmi_machine *machine, char **name, vmi_error **error);

/**
 * Where guest-physical memory is, ascending; what lies between is a hole. Fills `regions` with as many as `capacity`; `count` is how many there are.
 *
 * # Safety
 * `regions` is NULL with a capacity of 0, or has room for `capacity` regions.
 */
vmi_status vmi_machine_get_memory_map(vmi_machine *machine,
                                      vmi_region *regions,
                                      size_t capacity,
                                      size_t *count,
                                      vmi_error **error);

/**
 * Whether the machine is still there: VMI_STATUS_ENDED if not. Mapped memory stays readable after its guest has ended.
 */
vmi_status vmi_machine_check(vmi_machine *machine, vmi_error **error);

/**
 * Closes a machine, and all guests, memories, pauses and event sessions that came from it: their handles answer VMI_STATUS_CLOSED from now on, and a guest that was
 * held runs on. Lists, errors and snapshots stay. Memory that vmi_memory_view lent is gone. NULL and closed ones are left alone.
 */
void vmi_machine_close(vmi_machine *machine);

/**
 * Calls `callback` with `user_data` for everything that the page tables at `root` map from `first` to `last`, both included, ascending. `mode` is a vmi_paging_mode.
 */
vmi_status vmi_machine_each_mapping(vmi_machine *machine,
                                    uint64_t root,
                                    uint32_t mode,
                                    uint64_t first,
                                    uint64_t last,
                                    vmi_mapping_callback callback,
                                    void *user_data,
                                    vmi_error **error);

/**
 * The guest-physical memory of a machine. Closed with vmi_memory_close.
 */
vmi_status vmi_machine_physical_memory(vmi_machine *machine, vmi_memory **memory, vmi_error **error);

/**
 * The memory that the page tables at `root` map. `mode` is a vmi_paging_mode. Closed with vmi_memory_close.
 */
vmi_status vmi_machine_address_space(vmi_machine *machine, uint64_t root, uint32_t mode, vmi_memory **memory, vmi_error **error);

/**
 * The kernel's memory. Closed with vmi_memory_close.
 */
vmi_status vmi_guest_kernel_memory(vmi_guest *guest, vmi_memory **memory, vmi_error **error);

/**
 * The memory of the process with this id, which is looked for at each use. Closed with vmi_memory_close.
 */
vmi_status vmi_guest_process_memory(vmi_guest *guest, uint32_t pid, vmi_memory **memory, vmi_error **error);

/**
 * Reads `length` bytes of guest-physical memory: as vmi_memory_read, without a vmi_memory.
 *
 * # Safety
 * `buffer` has room for `length` bytes, which nothing else uses during the call.
 */
vmi_status vmi_machine_read(vmi_machine *machine, uint64_t at, void *buffer, size_t length, vmi_error **error);

/**
 * Writes `length` bytes of guest-physical memory.
 *
 * # Safety
 * `data` has `length` bytes, which nothing changes during the call.
 */
vmi_status vmi_machine_write(vmi_machine *machine, uint64_t at, const void *data, size_t length, vmi_error **error);

/**
 * Reads `length` bytes. After a failure the first vmi_error_done bytes of `buffer` are good.
 *
 * # Safety
 * `buffer` has room for `length` bytes, which nothing else uses during the call.
 */
vmi_status vmi_memory_read(vmi_memory *memory, uint64_t at, void *buffer, size_t length, vmi_error **error);

/**
 * Reads `length` bytes at a symbol of the memory's guest: "init_task", "init_task+0x10". Not for memory of a machine, which has no symbols.
 *
 * # Safety
 * As vmi_memory_read.
 */
vmi_status vmi_memory_read_symbol(vmi_memory *memory,
                                  const char * symbol,
                                  void *buffer,
                                  size_t length,
                                  vmi_error **error);

/**
 * Writes `length` bytes at a symbol of the memory's guest, as vmi_memory_read_symbol reads.
 *
 * # Safety
 * As vmi_memory_write.
 */
vmi_status vmi_memory_write_symbol(vmi_memory *memory, const char * symbol, const void *data, size_t length, vmi_error **error);

/**
 * Reads with zeros for what is not there. Fills `padded` with as many of the padded parts, ascending, as `capacity`; `count`, which may be NULL, is how many there
 * are.
 *
 * # Safety
 * As vmi_memory_read; `padded` is NULL with a capacity of 0, or has room for `capacity` ranges.
 */
vmi_status vmi_memory_read_lossy(vmi_memory *memory,
                                 uint64_t at,
                                 void *buffer,
                                 size_t length,
                                 vmi_range *padded,
                                 size_t capacity,
                                 size_t *count,
                                 vmi_error **error);

/**
 * Reads a byte.
 */
vmi_status vmi_memory_read_u8(vmi_memory *memory, uint64_t at, uint8_t *value, vmi_error **error);

/**
 * Reads a little-endian number of 16 bits.
 */
vmi_status vmi_memory_read_u16(vmi_memory *memory, uint64_t at, uint16_t *value, vmi_error **error);

/**
 * Reads a little-endian number of 32 bits.
 */
vmi_status vmi_memory_read_u32(vmi_memory *memory, uint64_t at, uint32_t *value, vmi_error **error);

/**
 * Reads a little-endian number of 64 bits.
 */
vmi_status vmi_memory_read_u64(vmi_memory *memory, uint64_t at, uint64_t *value, vmi_error **error);

/**
 * Reads a C string of at most `limit` bytes with its end, in the guest's own encoding. Freed with vmi_string_free.
 */
vmi_status vmi_memory_read_string(vmi_memory *memory, uint64_t at, size_t limit, char **string, vmi_error **error);

/**
 * Reads a zero-terminated string of at most `limit` little-endian UTF-16 units with its end, as UTF-8. Freed with vmi_string_free.
 */
vmi_status vmi_memory_read_utf16(vmi_memory *memory,
                                 uint64_t at,
                                 size_t limit,
                                 char **string,
                                 vmi_error **error);

/**
 * Writes `length` bytes. Of virtual memory all pages must be there, else nothing is written.
 *
 * # Safety
 * `data` has `length` bytes, which nothing changes during the call.
 */
vmi_status vmi_memory_write(vmi_memory *memory, uint64_t at, const void *data, size_t length, vmi_error **error);

/**
 * Lends `length` bytes without copying them: only of frozen memory that is mapped and in one piece, else VMI_STATUS_UNSUPPORTED. Valid until the machine is closed.
 */
vmi_status vmi_memory_view(vmi_memory *memory,
                           uint64_t at,
                           size_t length,
                           const uint8_t **data,
                           vmi_error **error);

/**
 * Where a virtual address lies in guest-physical memory. The message of a failure says at which level and entry the page tables end.
 */
vmi_status vmi_memory_translate(vmi_memory *memory,
                                uint64_t at,
                                vmi_translation *translation,
                                vmi_error **error);

/**
 * Closes a memory. NULL and closed ones are left alone.
 */
void vmi_memory_close(vmi_memory *memory);

/**
 * Makes options that say nothing yet. Closed with vmi_options_close.
 */
vmi_status vmi_options_new(vmi_options **options, vmi_error **error);

/**
 * Where the memory of a raw image lies, as "0x0-0xc0000000,0x100000000-0x140000000": the parts of the file in their order.
 */
vmi_status vmi_options_set_raw_map(vmi_options *options, const char * map, vmi_error **error);

/**
 * Whether an image that is cut short is read as far as it goes (not 0), or refused (0, as without this call).
 */
vmi_status vmi_options_set_allow_truncated(vmi_options *options, uint32_t allow, vmi_error **error);

/**
 * Reads a running guest of QEMU in this way or not at all: "shared", "process", "pmemaccess" or "gdb". See docs/live-guests.md.
 */
vmi_status vmi_options_set_road(vmi_options *options, const char * road, vmi_error **error);

/**
 * Adds a file that describes a kernel which does not describe itself, or a directory of such files. It is read when it is used.
 */
vmi_status vmi_options_add_symbols(vmi_options *options, const char * path, vmi_error **error);

/**
 * Lays the image over this one, as a differential snapshot over the full one.
 */
vmi_status vmi_options_set_base(vmi_options *options, const char * path, vmi_error **error);

/**
 * Reads the snapshot of this name, or else of this number, of a disk image that has several. Without this call that is the newest one with memory.
 */
vmi_status vmi_options_set_snapshot(vmi_options *options,
                                    const char * name,
                                    vmi_error **error);

/**
 * Whether symbol files of Windows that are nowhere on this host are fetched (not 0) from the servers that _NT_SYMBOL_PATH names, or from Microsoft's. VMI_STATUS_UNSUPPORTED
 * if the library was built without the feature `download`.
 */
vmi_status vmi_options_set_download(vmi_options *options,
                                    uint32_t download,
                                    vmi_error **error);

/**
 * Closes options. NULL and closed ones are left alone.
 */
void vmi_options_close(vmi_options *options);

/**
 * Stops the guest until the pause, and every other one, is closed with vmi_pause_close.
 */
vmi_status vmi_machine_pause(vmi_machine *machine, vmi_pause **pause, vmi_error **error);

/**
 * Lets the guest run on, unless other pauses hold it. NULL and closed ones are left alone.
 */
void vmi_pause_close(vmi_pause *pause);

/**
 * The processes, kernel ones included. Closed with vmi_processes_close.
 */
vmi_status vmi_guest_list_processes(vmi_guest *guest, vmi_processes **processes, vmi_error **error);

/**
 * The process with this id, as a list of one; VMI_STATUS_NO_OBJECT if there is none. Closed with vmi_processes_close.
 */
vmi_status vmi_guest_find_process(vmi_guest *guest, uint32_t pid, vmi_processes **processes, vmi_error **error);

/**
 * The process that a vCPU runs, as a list of one. Certain only while the guest stands still. Closed with vmi_processes_close.
 */
vmi_status vmi_guest_running_on(vmi_guest *guest, uint32_t vcpu, vmi_processes **processes, vmi_error **error);

/**
 * The process whose page tables start at `root`, as a list of one, or of none. Closed with vmi_processes_close.
 */
vmi_status vmi_guest_process_of(vmi_guest *guest, uint64_t root, vmi_processes **processes, vmi_error **error);

/**
 * The next process, into `process`: VMI_STATUS_OK, or VMI_STATUS_END behind the last one. A row that could not be read is an error in its place; the next call goes on
 * behind it.
 */
vmi_status vmi_processes_next(vmi_processes *processes,
                              vmi_process *process,
                              vmi_error **error);

/**
 * Closes a list and frees its strings. NULL and closed ones are left alone.
 */
void vmi_processes_close(vmi_processes *processes);

/**
 * The roots of all page tables that a process runs on: with page-table isolation two, for a kernel thread none. Fills `roots` with as many as `capacity`; `count` is how
 * many there are.
 *
 * # Safety
 * `roots` is NULL with a capacity of 0, or has room for `capacity` numbers.
 */
vmi_status vmi_guest_get_page_tables(vmi_guest *guest,
                                     uint32_t pid,
                                     uint64_t *roots,
                                     size_t capacity,
                                     size_t *count,
                                     vmi_error **error);

/**
 * The environment of a process, "NAME=value" each: under Linux the one that it was started with. Closed with vmi_strings_close.
 */
vmi_status vmi_guest_get_environment(vmi_guest *guest, uint32_t pid, vmi_strings **environment, vmi_error **error);

/**
 * The path of the program that a process runs, as the kernel knows it; NULL if it has none. Freed with vmi_string_free.
 */
vmi_status vmi_guest_get_executable(vmi_guest *guest, uint32_t pid, char **path, vmi_error **error);

/**
 * All threads of all processes. Closed with vmi_threads_close.
 */
vmi_status vmi_guest_list_threads(vmi_guest *guest, vmi_threads **threads, vmi_error **error);

/**
 * The next thread; see vmi_processes_next.
 */
vmi_status vmi_threads_next(vmi_threads *threads, vmi_thread *thread, vmi_error **error);

/**
 * Closes a list and frees its strings. NULL and closed ones are left alone.
 */
void vmi_threads_close(vmi_threads *threads);

/**
 * The registers of one vCPU.
 */
vmi_status vmi_machine_get_registers(vmi_machine *machine, uint32_t vcpu, vmi_registers *registers, vmi_error **error);

/**
 * Sets the registers of one vCPU. The guest must stand still: see vmi_machine_pause.
 */
vmi_status vmi_machine_set_registers(vmi_machine *machine, uint32_t vcpu, const vmi_registers *registers, vmi_error **error);

/**
 * The next string, which belongs to the list; see vmi_processes_next.
 */
vmi_status vmi_strings_next(vmi_strings *strings, const char **string, vmi_error **error);

/**
 * Closes a list and frees its strings. NULL and closed ones are left alone.
 */
void vmi_strings_close(vmi_strings *strings);

/**
 * Makes a frozen copy of all memory and registers, of one moment: a machine of its own, which outlives this one. Closed with vmi_machine_close. `report` may be NULL.
 */
vmi_status vmi_machine_snapshot(vmi_machine *machine,
                                vmi_machine **snapshot,
                                vmi_snapshot_report *report,
                                vmi_error **error);

/**
 * The processes by every view that the system has of them, in the order of their ids: what hides from one is seen by another. Of a running guest the views are of
 * different moments: pause it, or what comes or goes meanwhile seems to hide. Behind the processes come the errors of views that failed, wholly or in part.
 * Closed with vmi_seen_processes_close.
 */
vmi_status vmi_guest_survey_processes(vmi_guest *guest,
                                      vmi_seen_processes **processes,
                                      vmi_error **error);

/**
 * The next process; see vmi_processes_next.
 */
vmi_status vmi_seen_processes_next(vmi_seen_processes *processes, vmi_seen_process *process, vmi_error **error);

/**
 * Closes a list and frees its strings. NULL and closed ones are left alone.
 */
void vmi_seen_processes_close(vmi_seen_processes *processes);

/**
 * The address of a symbol: "init_task", "init_task+0x10". Of several of a name, the kernel's own with the lowest address.
 */
vmi_status vmi_guest_get_address(vmi_guest *guest, const char * symbol, uint64_t *address, vmi_error **error);

/**
 * Every symbol of a name, its modules' included; all symbols, ascending by address, if `name` is NULL. Closed with vmi_symbols_close.
 */
vmi_status vmi_guest_list_symbols(vmi_guest *guest,
                                  const char * name,
                                  vmi_symbols **found,
                                  vmi_error **error);

/**
 * All symbols at exactly an address. Closed with vmi_symbols_close.
 */
vmi_status vmi_guest_list_symbols_at(vmi_guest *guest, uint64_t at, vmi_symbols **found, vmi_error **error);

/**
 * The name of the last symbol at or below an address, freed with vmi_string_free, and how far above it the address is. VMI_STATUS_NO_SYMBOL if there is none.
 */
vmi_status vmi_guest_get_nearest_symbol(vmi_guest *guest,
                                        uint64_t at,
                                        char **name,
                                        uint64_t *offset,
                                        vmi_error **error);

/**
 * The next symbol; see vmi_processes_next.
 */
vmi_status vmi_symbols_next(vmi_symbols *symbols, vmi_symbol *symbol, vmi_error **error);

/**
 * Closes a list and frees its strings. NULL and closed ones are left alone.
 */
void vmi_symbols_close(vmi_symbols *symbols);

/**
 * The loaded kernel modules. Closed with vmi_modules_close.
 */
vmi_status vmi_guest_list_modules(vmi_guest *guest, vmi_modules **modules, vmi_error **error);

/**
 * The next module; see vmi_processes_next.
 */
vmi_status vmi_modules_next(vmi_modules *modules, vmi_module *module, vmi_error **error);

/**
 * Closes a list and frees its strings. NULL and closed ones are left alone.
 */
void vmi_modules_close(vmi_modules *modules);

/**
 * The memory areas of a process, ascending. Closed with vmi_memory_areas_close.
 */
vmi_status vmi_guest_list_memory_areas(vmi_guest *guest, uint32_t pid, vmi_memory_areas **areas, vmi_error **error);

/**
 * The next memory area; see vmi_processes_next.
 */
vmi_status vmi_memory_areas_next(vmi_memory_areas *areas, vmi_memory_area *area, vmi_error **error);

/**
 * Closes a list and frees its strings. NULL and closed ones are left alone.
 */
void vmi_memory_areas_close(vmi_memory_areas *areas);

/**
 * The kernel's log, oldest record first. Closed with vmi_log_close.
 */
vmi_status vmi_guest_read_log(vmi_guest *guest, vmi_log **log, vmi_error **error);

/**
 * The next record; see vmi_processes_next.
 */
vmi_status vmi_log_next(vmi_log *log, vmi_log_record *record, vmi_error **error);

/**
 * Closes a list and frees its strings. NULL and closed ones are left alone.
 */
void vmi_log_close(vmi_log *log);

/**
 * How many handles are open in this process. For tests: a program that has closed all that it opened sees 0.
 */
size_t vmi_open_handles(void);

/**
 * The running guests of this host that this user can see. Nothing is opened. Closed with vmi_targets_close.
 */
vmi_status vmi_targets_find(vmi_targets **targets, vmi_error **error);

/**
 * The next guest; see vmi_processes_next.
 */
vmi_status vmi_targets_next(vmi_targets *targets, vmi_target *target, vmi_error **error);

/**
 * Closes a list and frees its strings. NULL and closed ones are left alone.
 */
void vmi_targets_close(vmi_targets *targets);

/**
 * Where a member is in a structure of the kernel: "task_struct", "se.sum_exec_runtime". Members of anonymous structures are found too.
 */
vmi_status vmi_guest_get_field(vmi_guest *guest,
                               const char * structure,
                               const char * member,
                               vmi_field *field,
                               vmi_error **error);

/**
 * The name of a member's type, as in C but for the order of its parts: "struct list_head", "struct mm_struct *". Freed with vmi_string_free.
 */
vmi_status vmi_guest_get_type_name(vmi_guest *guest,
                                   const char * structure,
                                   const char * member,
                                   char **name,
                                   vmi_error **error);

/**
 * The size of a structure or union of the kernel, in bytes.
 */
vmi_status vmi_guest_get_size(vmi_guest *guest, const char * structure, uint64_t *size, vmi_error **error);

/**
 * The value of a constant of an enumeration of the kernel.
 */
vmi_status vmi_guest_get_constant(vmi_guest *guest,
                                  const char * enumeration,
                                  const char * name,
                                  int64_t *value,
                                  vmi_error **error);

/**
 * The names of all structures and unions that are described. Closed with vmi_strings_close.
 */
vmi_status vmi_guest_list_structures(vmi_guest *guest, vmi_strings **names, vmi_error **error);

/**
 * Bytes in a pointer of the kernel.
 */
vmi_status vmi_guest_get_pointer_size(vmi_guest *guest, uint64_t *size, vmi_error **error);

/**
 * The version of the library that the program runs with, as "0.1.0". Never freed.
 */
const char *vmi_version(void);

/**
 * What the back end can report and do for this guest: a bit for each vmi_event_ability.
 */
vmi_status vmi_events_get_abilities(vmi_events *events, uint64_t *abilities, vmi_error **error);

/**
 * Makes a view: another arrangement of guest-physical memory, in which all of it may be accessed as `rights` says (some of VMI_ACCESS_READ and its siblings). It is gone at
 * the end of the session, and every vCPU is back in view 0, the memory as it is. Whether an event is held or not, as for all calls of views.
 */
vmi_status vmi_events_create_view(vmi_events *events,
                                  uint32_t rights,
                                  uint32_t *view,
                                  vmi_error **error);

/**
 * Destroys a view; vCPUs in it go to view 0.
 */
vmi_status vmi_events_destroy_view(vmi_events *events, uint32_t view, vmi_error **error);

/**
 * Says how the page at the guest-physical address `page` may be accessed in a view; what is not allowed is an event.
 */
vmi_status vmi_events_allow(vmi_events *events, uint32_t view, uint64_t page, uint32_t rights, vmi_error **error);

/**
 * Shows the page at `instead` where `page` is, in a view; VMI_UNKNOWN_ADDRESS shows the page itself again.
 */
vmi_status vmi_events_remap(vmi_events *events, uint32_t view, uint64_t page, uint64_t instead, vmi_error **error);

/**
 * All vCPUs go on in this view.
 */
vmi_status vmi_events_switch_view(vmi_events *events, uint32_t view, vmi_error **error);

/**
 * Puts an interrupt or exception into a vCPU, which takes it when it goes on.
 */
vmi_status vmi_events_inject(vmi_events *events, uint32_t vcpu, const vmi_injection *injection, vmi_error **error);

#ifdef __cplusplus
}  // extern "C"
#endif  // __cplusplus

#endif  /* VMI_H */
