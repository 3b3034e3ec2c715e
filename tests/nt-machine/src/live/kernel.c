/* What the live machine runs: a kernel whose processes appear and end all the time. The structures stand before this text, with the offsets of the build. */

#define SLOTS 48
#define MAX_TRUTH 96
#define FIRST_PID 5000
#define PIDS 400

struct truth_process {
    u64 eprocess;
    u64 pid;
    u64 parent;
    u64 create_time;
    u64 exit_time;
    u64 page_table;
    char name[16];
};

/* The machine's own account of its list. `generation` is odd while a change is under way; the account and the list agree whenever it is even. */
struct truth {
    u64 magic;
    volatile u64 generation;
    volatile u64 created;
    volatile u64 ended;
    volatile u64 ticks;
    volatile u64 count;
    struct truth_process processes[MAX_TRUTH];
};

/* What the builder fills in. */
struct start {
    u64 page_table;
    u64 slots;
    u64 changes_per_tick;
    u64 divisor;
    struct _EPROCESS *process[SLOTS];
    struct _ETHREAD *thread[SLOTS];
    u64 system_time;
    u64 prcb_current_thread;
    u64 idt;
    u64 task_state;
    u64 user_code;
    u64 user_one_in;
    u64 interrupt_stack;
    u64 fixed;
    struct truth_process fixed_process[MAX_TRUTH - SLOTS];
};

__attribute__((section(".data"), used, aligned(4096))) struct start NtMachineStart = {1};
__attribute__((section(".data"), used, aligned(4096))) struct truth NtMachineTruth = {1};

/* 0: free; 1: lives; 2: has ended, is still in the list; 3: is out of the list, its memory not yet used again. */
static u8 state[SLOTS];

/* Without shadows the kernel's own tables serve in user mode too. */
#ifdef SHADOW
#define USER_PAGE_TABLE(process) ((process)->Pcb.UserDirectoryTableBase)
#else
#define USER_PAGE_TABLE(process) ((process)->Pcb.DirectoryTableBase)
#endif
static u64 random_state = 0x2545F4914F6CDD1D;

static u64 next_random(void)
{
    random_state ^= random_state << 13;
    random_state ^= random_state >> 7;
    random_state ^= random_state << 17;
    return random_state;
}

#define ordered() __asm__ volatile("" ::: "memory")

void *memset(void *to, int value, u64 count)
{
    void *at = to;
    __asm__ volatile("rep stosb" : "+D"(at), "+c"(count) : "a"(value) : "memory");
    return to;
}

void *memcpy(void *to, const void *from, u64 count)
{
    void *at = to;
    __asm__ volatile("rep movsb" : "+D"(at), "+S"(from), "+c"(count) : : "memory");
    return to;
}

static void out(u16 port, u8 value)
{
    __asm__ volatile("outb %0, %1" ::"a"(value), "Nd"(port));
}

/* The order of stores is that of InsertTailList and RemoveEntryList, which wdm.h documents. */
static void insert_tail(struct _LIST_ENTRY *head, struct _LIST_ENTRY *entry)
{
    struct _LIST_ENTRY *last = head->Blink;
    entry->Flink = head;
    ordered();
    entry->Blink = last;
    ordered();
    last->Flink = entry;
    ordered();
    head->Blink = entry;
    ordered();
}

static void remove_entry(struct _LIST_ENTRY *entry)
{
    struct _LIST_ENTRY *next = entry->Flink;
    struct _LIST_ENTRY *last = entry->Blink;
    last->Flink = next;
    ordered();
    next->Blink = last;
    ordered();
}

static void write_name(u8 *name, u64 number)
{
    name[0] = 'w';
    for (int digit = 8; digit > 0; digit--) {
        name[digit] = '0' + number % 10;
        number /= 10;
    }
    name[9] = '.';
    name[10] = 'e';
    name[11] = 'x';
    name[12] = 'e';
    name[13] = 0;
}

static struct truth_process *account_of(u64 eprocess)
{
    for (u64 nth = 0; nth < NtMachineTruth.count; nth++)
        if (NtMachineTruth.processes[nth].eprocess == eprocess)
            return &NtMachineTruth.processes[nth];
    return 0;
}

static u64 free_pid(void)
{
    u64 pid;
    do {
        pid = FIRST_PID + next_random() % PIDS * 4;
        for (u64 nth = 0; nth < NtMachineTruth.count; nth++)
            if (NtMachineTruth.processes[nth].pid == pid)
                pid = 0;
    } while (!pid);
    return pid;
}

static void begin_process(u64 slot)
{
    struct _EPROCESS *process = NtMachineStart.process[slot];
    struct _ETHREAD *thread = NtMachineStart.thread[slot];
    u64 page_table = process->Pcb.DirectoryTableBase;
    void *peb = process->Peb;
    u64 user_page_table = USER_PAGE_TABLE(process);
    u64 pid = free_pid();
    u64 number = ++NtMachineTruth.created;
    u64 time = NtMachineStart.system_time + NtMachineTruth.ticks * 10000;

    memset(process, 0, sizeof *process);
    USER_PAGE_TABLE(process) = user_page_table;
    process->Pcb.DirectoryTableBase = page_table;
    process->Peb = peb;
    process->Pcb.Header.Type = 3;
    process->Pcb.ThreadListHead.Flink = process->Pcb.ThreadListHead.Blink = &process->Pcb.ThreadListHead;
    process->ThreadListHead.Flink = process->ThreadListHead.Blink = &process->ThreadListHead;
    process->UniqueProcessId = (void *)pid;
    process->InheritedFromUniqueProcessId = (void *)4;
    *(u64 *)&process->CreateTime = time;
    process->ExitStatus = 0x103;
    write_name((u8 *)process->ImageFileName, number);
    *(void **)&thread->Cid = (void *)pid;
    insert_tail(&process->Pcb.ThreadListHead, &thread->Tcb.ThreadListEntry);
    insert_tail(&process->ThreadListHead, &thread->ThreadListEntry);
    process->ActiveThreads = 1;

    NtMachineTruth.generation++;
    ordered();
    insert_tail(&PsActiveProcessHead, &process->ActiveProcessLinks);
    struct truth_process *account = &NtMachineTruth.processes[NtMachineTruth.count++];
    account->eprocess = (u64)process;
    account->pid = pid;
    account->parent = 4;
    account->create_time = time;
    account->exit_time = 0;
    account->page_table = page_table;
    memset(account->name, 0, sizeof account->name);
    write_name((u8 *)account->name, number);
    ordered();
    NtMachineTruth.generation++;
    state[slot] = 1;
}

static void exit_process(u64 slot)
{
    struct _EPROCESS *process = NtMachineStart.process[slot];
    u64 time = NtMachineStart.system_time + NtMachineTruth.ticks * 10000 + 1;
    NtMachineTruth.generation++;
    ordered();
    process->ExitStatus = 0;
    *(u64 *)&process->ExitTime = time;
    account_of((u64)process)->exit_time = time;
    ordered();
    NtMachineTruth.generation++;
    state[slot] = 2;
}

static void delete_process(u64 slot)
{
    struct _EPROCESS *process = NtMachineStart.process[slot];
    NtMachineTruth.generation++;
    ordered();
    remove_entry(&process->ActiveProcessLinks);
    struct truth_process *account = account_of((u64)process);
    u64 behind = NtMachineTruth.count - (account - NtMachineTruth.processes) - 1;
    /* The account stays in the order of the list. */
    memcpy(account, account + 1, behind * sizeof *account);
    NtMachineTruth.count--;
    NtMachineTruth.ended++;
    ordered();
    NtMachineTruth.generation++;
    state[slot] = 3;
}

/* Its memory belongs to someone else now. */
static void reuse_memory(u64 slot)
{
    struct _EPROCESS *process = NtMachineStart.process[slot];
    u64 page_table = process->Pcb.DirectoryTableBase;
    u64 user_page_table = USER_PAGE_TABLE(process);
    void *peb = process->Peb;
    memset(process, 0xA5, sizeof *process);
    USER_PAGE_TABLE(process) = user_page_table;
    process->Peb = peb;
    process->Pcb.DirectoryTableBase = page_table;
    state[slot] = 0;
}

static void change(void)
{
    u64 slot = next_random() % NtMachineStart.slots;
    switch (state[slot]) {
    case 0:
        begin_process(slot);
        break;
    case 1:
        exit_process(slot);
        break;
    case 2:
        delete_process(slot);
        break;
    default:
        reuse_memory(slot);
    }
}

/* The processor runs a thread of some process that lives: its page tables are loaded, its thread is the current one. */
static struct _EPROCESS *switch_process(void)
{
    u64 slot = next_random() % NtMachineStart.slots;
    for (u64 tries = 0; state[slot] != 1; tries++) {
        if (tries == NtMachineStart.slots)
            return 0;
        slot = (slot + 1) % NtMachineStart.slots;
    }
    *(void **)NtMachineStart.prcb_current_thread = NtMachineStart.thread[slot];
    __asm__ volatile("movq %0, %%cr3" ::"r"(NtMachineStart.process[slot]->Pcb.DirectoryTableBase) : "memory");
    return NtMachineStart.process[slot];
}

static void leave_process(void)
{
    __asm__ volatile("movq %0, %%cr3" ::"r"(NtMachineStart.page_table) : "memory");
}

#define TEXT_(value) #value
#define TEXT(value) TEXT_(value)

__attribute__((used)) u64 kernel_stack = 1;

/* To user mode, until the next interrupt: code at the first parameter, stack at the second, page tables the third, the stack of interrupts the fourth. GS belongs to
   the process then. Behind the change of page tables nothing is mapped but the code's page and that stack. */
__attribute__((section("KVASCODE"), naked, used)) static void run_user_code(u64 code, u64 stack, u64 page_table, u64 interrupt_stack)
{
    __asm__ volatile("pushq %rbx\n pushq %rbp\n pushq %rsi\n pushq %rdi\n pushq %r12\n pushq %r13\n pushq %r14\n pushq %r15\n"
                     "movq %rsp, kernel_stack(%rip)\n movq %r9, %rsp\n movq %r8, %cr3\n swapgs\n"
                     "pushq $0x2B\n pushq %rdx\n pushq $0x202\n pushq $0x33\n pushq %rcx\n iretq");
}

/* Counts; from user mode it goes back to who called run_user_code, by way of the kernel's page tables. */
__attribute__((section("KVASCODE"), naked, used)) void KiTimerInterrupt(void)
{
    __asm__ volatile("pushq %rax\n movb $0x20, %al\n outb %al, $0x20\n"
                     "testb $3, 16(%rsp)\n jnz 1f\n incq NtMachineTruth+32(%rip)\n popq %rax\n iretq\n"
                     "1: swapgs\n movq %gs:" TEXT(KERNEL_TABLES) ", %rax\n movq %rax, %cr3\n incq NtMachineTruth+32(%rip)\n"
                     "movq kernel_stack(%rip), %rsp\n"
                     "popq %r15\n popq %r14\n popq %r13\n popq %r12\n popq %rdi\n popq %rsi\n popq %rbp\n popq %rbx\n ret");
}

static void set_gate(u64 vector, void *handler)
{
    u64 at = (u64)handler;
    u64 *gate = (u64 *)(NtMachineStart.idt + vector * 16);
    gate[1] = at >> 32;
    gate[0] = (at & 0xFFFF) | 0x10ULL << 16 | 0x8E00ULL << 32 | (at >> 16 & 0xFFFF) << 48;
}

__attribute__((used)) void KiRun(void)
{
    for (u64 nth = 0; nth < NtMachineStart.fixed; nth++)
        NtMachineTruth.processes[nth] = NtMachineStart.fixed_process[nth];
    NtMachineTruth.count = NtMachineStart.fixed;
    NtMachineTruth.generation = 0;
    NtMachineTruth.created = NtMachineTruth.ended = NtMachineTruth.ticks = 0;

    /* Two 8259: vectors from 0x30, everything masked but the timer; 8254: channel 0 as rate generator. */
    out(0x20, 0x11);
    out(0x21, 0x30);
    out(0x21, 4);
    out(0x21, 1);
    out(0xA0, 0x11);
    out(0xA1, 0x38);
    out(0xA1, 2);
    out(0xA1, 1);
    out(0x21, 0xFE);
    out(0xA1, 0xFF);
    out(0x43, 0x34);
    out(0x40, NtMachineStart.divisor & 0xFF);
    out(0x40, NtMachineStart.divisor >> 8);
    set_gate(0x30, KiTimerInterrupt);
    for (u64 slot = 0; slot < NtMachineStart.slots / 2; slot++)
        begin_process(slot);
    ordered();
    NtMachineTruth.magic = 0x6874757274746e6d;

    __asm__ volatile("ltr %%ax" ::"a"(0x40));
    for (struct _EPROCESS *user = 0;;) {
        if (user && NtMachineStart.user_one_in && next_random() % NtMachineStart.user_one_in == 0)
            run_user_code(NtMachineStart.user_code, NtMachineStart.user_code - 64, USER_PAGE_TABLE(user) & ~0xFFFULL, NtMachineStart.interrupt_stack);
        else
            __asm__ volatile("sti\n hlt\n cli" ::: "memory");
        leave_process();
        for (u64 nth = 0; nth < NtMachineStart.changes_per_tick; nth++)
            change();
        user = switch_process();
    }
}

__attribute__((section("INIT"), naked, used)) void KiSystemStartup(void *block)
{
    __asm__ volatile("movq NtMachineStart(%rip), %rax\n movq %rax, %cr3\n call KiRun");
}
