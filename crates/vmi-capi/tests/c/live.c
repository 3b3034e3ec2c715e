/*
 * Every function that needs a running guest, rightly and wrongly: live TARGET PID PAGE SYMBOL
 *
 * PID is a process that counts in the first word of the page at PAGE and reads its second one; meanwhile somebody runs SYMBOL again and again.
 */
#include <pthread.h>
#include <unistd.h>
#include "check.h"

static vmi_machine *machine;
static vmi_guest *guest;
static uint64_t symbol;

static uint64_t ticks(uint32_t pid, uint64_t page)
{
	vmi_memory *memory;
	uint64_t value = 0;

	ANSWERS(VMI_STATUS_OK, vmi_guest_process_memory(guest, pid, &memory, &error));
	ANSWERS(VMI_STATUS_OK, vmi_memory_read_u64(memory, page, &value, &error));
	vmi_memory_close(memory);
	return value;
}

static void found(const char *target)
{
	vmi_targets *targets;
	vmi_target row;
	int seen = 0;

	ANSWERS(VMI_STATUS_OK, vmi_targets_find(&targets, &error));
	while (vmi_targets_next(targets, &row, NULL) == VMI_STATUS_OK)
		/* A guest with two monitors has two names. */
		seen += row.target && !strncmp(row.target, target, strlen(target) - strlen("qmp.sock")) && row.control && row.events && row.pid != 0;
	CHECK(seen == 1);
	vmi_targets_close(targets);
}

static void pauses(uint32_t pid, uint64_t page)
{
	vmi_pause *one, *two;
	vmi_registers before, after;
	uint64_t then;

	ANSWERS(VMI_STATUS_OK, vmi_machine_pause(machine, &one, &error));
	ANSWERS(VMI_STATUS_OK, vmi_machine_pause(machine, &two, &error));
	then = ticks(pid, page);
	vmi_pause_close(two);
	usleep(100000);
	CHECK(ticks(pid, page) == then);
	ANSWERS(VMI_STATUS_OK, vmi_machine_get_registers(machine, 0, &before, &error));
	CHECK((before.known & VMI_KNOWN_CR3) && before.cr3 && before.paging_mode == VMI_PAGING_MODE_LEVEL4 && (before.known & VMI_KNOWN_CS));
	after = before;
	after.r15 ^= 0x1122334455667788;
	ANSWERS(VMI_STATUS_OK, vmi_machine_set_registers(machine, 0, &after, &error));
	ANSWERS(VMI_STATUS_OK, vmi_machine_get_registers(machine, 0, &after, &error));
	CHECK(after.r15 == (before.r15 ^ 0x1122334455667788) && after.rip == before.rip && after.cr3 == before.cr3);
	ANSWERS(VMI_STATUS_OK, vmi_machine_set_registers(machine, 0, &before, &error));
	ANSWERS(VMI_STATUS_NO_OBJECT, vmi_machine_get_registers(machine, 99, &after, &error));
	vmi_pause_close(one);
	vmi_pause_close(one);
	usleep(200000);
	CHECK(ticks(pid, page) > then);
}

static void snapshots(uint32_t pid, uint64_t page)
{
	vmi_machine *frozen, *live = machine;
	vmi_guest *inside, *outside = guest;
	vmi_snapshot_report report;
	vmi_machine_info info;
	uint64_t then;

	ANSWERS(VMI_STATUS_OK, vmi_machine_snapshot(machine, &frozen, &report, &error));
	CHECK(report.took >= report.stood_still && report.stood_still > 0 && report.missing == 0);
	ANSWERS(VMI_STATUS_OK, vmi_machine_get_info(frozen, &info, &error));
	CHECK(info.frozen && info.vcpu_count == 1);
	ANSWERS(VMI_STATUS_OK, vmi_guest_attach(frozen, NULL, &inside, &error));
	machine = frozen, guest = inside;
	then = ticks(pid, page);
	usleep(50000);
	CHECK(then > 0 && ticks(pid, page) == then);
	machine = live, guest = outside;
	ANSWERS(VMI_STATUS_UNSUPPORTED, vmi_machine_write(frozen, 0, "x", 1, &error));
	vmi_machine_close(frozen);
}

static void writes(uint32_t pid, uint64_t page)
{
	vmi_memory *memory;
	uint64_t word = 0x1234, back = 0;

	ANSWERS(VMI_STATUS_OK, vmi_guest_process_memory(guest, pid, &memory, &error));
	ANSWERS(VMI_STATUS_OK, vmi_memory_write(memory, page + 8, &word, sizeof word, &error));
	ANSWERS(VMI_STATUS_OK, vmi_memory_read_u64(memory, page + 8, &back, &error));
	CHECK(back == word);
	ANSWERS(VMI_STATUS_FAULT, vmi_memory_write(memory, 0, &word, sizeof word, &error));
	ANSWERS(VMI_STATUS_UNSUPPORTED, vmi_memory_view(memory, page, 8, &(const uint8_t *){ NULL }, &error));
	vmi_memory_close(memory);
}

struct seen {
	uint64_t count, wrong;
	uint32_t answer;
};

static uint32_t on_event(vmi_event *event, void *user_data)
{
	struct seen *seen = user_data;
	vmi_event_info info;
	vmi_registers registers;
	vmi_processes *running;
	vmi_process process;

	seen->count++;
	if (vmi_event_get_info(event, &info, NULL) || vmi_event_get_registers(event, &registers, NULL) ||
	    vmi_guest_running_on(guest, info.vcpu, &running, NULL))
		return 99;
	if (vmi_processes_next(running, &process, NULL) || strcmp(process.name, "actor"))
		seen->wrong++;
	vmi_processes_close(running);
	seen->wrong += info.kind != VMI_EVENT_KIND_SOFTWARE_BREAKPOINT || info.at != symbol || registers.rip != symbol || info.answered;
	return seen->count < 5 ? VMI_ACTION_RESUME : seen->answer;
}

static uint32_t on_step(vmi_event *event, void *user_data)
{
	uint64_t *kinds = user_data;
	vmi_event_info info;

	if (vmi_event_get_info(event, &info, NULL))
		return 99;
	kinds[info.kind == VMI_EVENT_KIND_STEP]++;
	return kinds[1] < 3 ? VMI_ACTION_STEP : VMI_ACTION_END;
}

/* Answers by itself, and uses the session wrongly meanwhile. */
static uint32_t on_own(vmi_event *event, void *user_data)
{
	vmi_events *events = user_data;
	vmi_trap trap = { .kind = VMI_EVENT_KIND_WRITE, .at = symbol, .length = 8 };
	uint64_t number;

	ANSWERS(VMI_STATUS_STATE, vmi_events_set_trap(events, &trap, &number, &error));
	ANSWERS(VMI_STATUS_STATE, vmi_events_remove_trap(events, 1, &error));
	ANSWERS(VMI_STATUS_ARGUMENT, vmi_event_reply(event, 17, NULL, &error));
	ANSWERS(VMI_STATUS_OK, vmi_event_reply(event, VMI_ACTION_RESUME, NULL, &error));
	ANSWERS(VMI_STATUS_CLOSED, vmi_event_reply(event, VMI_ACTION_RESUME, NULL, &error));
	return VMI_ACTION_END;
}

/* Closes the session that it is called by. */
static uint32_t on_close(vmi_event *event, void *user_data)
{
	(void)event;
	vmi_events_close(user_data);
	return VMI_ACTION_STEP;
}

static void *wait_for_ever(void *user_data)
{
	vmi_event *event;
	vmi_status status;

	while ((status = vmi_events_next(user_data, VMI_FOREVER, &event, NULL)) == VMI_STATUS_OK)
		continue;
	CHECK(status == VMI_STATUS_CLOSED);
	return NULL;
}

/* What QEMU's gdb stub has, and what it has not: an error, and the session and the event stay as they are. */
static void abilities(void)
{
	vmi_events *session;
	vmi_event *event;
	vmi_event_info info;
	vmi_trap trap = { .kind = VMI_EVENT_KIND_SOFTWARE_BREAKPOINT, .at = symbol };
	vmi_injection interrupt = { .kind = VMI_INJECTION_KIND_INTERRUPT, .vector = 0x80 };
	uint64_t able = 0, number;
	uint32_t view;

	ANSWERS(VMI_STATUS_OK, vmi_events_open(machine, &session, &error));
	ANSWERS(VMI_STATUS_NULL, vmi_events_get_abilities(session, NULL, &error));
	ANSWERS(VMI_STATUS_OK, vmi_events_get_abilities(session, &able, &error));
	CHECK((able >> VMI_EVENT_ABILITY_SOFTWARE_BREAKPOINT & 1) && (able >> VMI_EVENT_ABILITY_WATCHPOINT & 1) && (able >> VMI_EVENT_ABILITY_STEP & 1));
	CHECK(!(able >> VMI_EVENT_ABILITY_MODEL_REGISTER & 1) && !(able >> VMI_EVENT_ABILITY_DENY & 1) && !(able >> VMI_EVENT_ABILITY_VIEW & 1));
	for (uint32_t kind = VMI_EVENT_KIND_MEMORY; kind <= VMI_EVENT_KIND_OTHER; kind++) {
		vmi_trap other = { .kind = kind, .at = 0x1000, .length = 8, .access = VMI_ACCESS_WRITE };
		int asked = kind != VMI_EVENT_KIND_INTERRUPT && kind != VMI_EVENT_KIND_OTHER;
		ANSWERS(asked ? VMI_STATUS_UNSUPPORTED : VMI_STATUS_ARGUMENT, vmi_events_set_trap(session, &other, &number, &error));
	}
	ANSWERS(VMI_STATUS_ARGUMENT, vmi_events_set_trap(session, &(vmi_trap){ .kind = VMI_EVENT_KIND_MEMORY, .length = 8 }, &number, &error));
	ANSWERS(VMI_STATUS_ARGUMENT, vmi_events_set_trap(session, &(vmi_trap){ .kind = VMI_EVENT_KIND_MEMORY, .length = 8, .access = 8 }, &number, &error));
	ANSWERS(VMI_STATUS_ARGUMENT, vmi_events_set_trap(session, &(vmi_trap){ .kind = VMI_EVENT_KIND_CONTROL_REGISTER, .which = 2 }, &number, &error));
	ANSWERS(VMI_STATUS_UNSUPPORTED, vmi_events_create_view(session, VMI_ACCESS_READ, &view, &error));
	ANSWERS(VMI_STATUS_ARGUMENT, vmi_events_switch_view(session, 65536, &error));
	ANSWERS(VMI_STATUS_NULL, vmi_events_inject(session, 0, NULL, &error));
	ANSWERS(VMI_STATUS_UNSUPPORTED, vmi_events_inject(session, 0, &interrupt, &error));
	ANSWERS(VMI_STATUS_OK, vmi_events_set_trap(session, &trap, &number, &error));
	ANSWERS(VMI_STATUS_OK, vmi_events_next(session, 20000, &event, &error));
	ANSWERS(VMI_STATUS_OK, vmi_event_get_info(event, &info, &error));
	CHECK(info.view == VMI_UNKNOWN_ID && info.linear == VMI_UNKNOWN_ADDRESS && !info.access && !info.which);
	ANSWERS(VMI_STATUS_OK, vmi_events_get_abilities(session, &able, &error));
	ANSWERS(VMI_STATUS_UNSUPPORTED, vmi_events_inject(session, 0, &interrupt, &error));
	ANSWERS(VMI_STATUS_NULL, vmi_event_answer(event, NULL, &error));
	ANSWERS(VMI_STATUS_ARGUMENT, vmi_event_answer(event, &(vmi_reply){ .action = VMI_ACTION_EMULATE, .emulation = VMI_EMULATION_INSTRUCTION }, &error));
	ANSWERS(VMI_STATUS_ARGUMENT, vmi_event_reply(event, VMI_ACTION_EMULATE, NULL, &error));
	ANSWERS(VMI_STATUS_UNSUPPORTED, vmi_event_reply(event, VMI_ACTION_DENY, NULL, &error));
	/* It was let go on. */
	ANSWERS(VMI_STATUS_OK, vmi_events_next(session, 20000, &event, &error));
	ANSWERS(VMI_STATUS_OK, vmi_event_answer(event, &(vmi_reply){ .step = true }, &error));
	ANSWERS(VMI_STATUS_OK, vmi_events_next(session, 20000, &event, &error));
	ANSWERS(VMI_STATUS_OK, vmi_event_get_info(event, &info, &error));
	CHECK(info.kind == VMI_EVENT_KIND_STEP && info.instruction != symbol);
	vmi_events_close(session);
}

static void events(uint32_t pid)
{
	vmi_events *session, *second;
	vmi_event *event;
	vmi_event_info info;
	vmi_registers registers;
	vmi_trap trap = { .kind = VMI_EVENT_KIND_SOFTWARE_BREAKPOINT, .at = symbol };
	vmi_memory *kernel;
	struct seen seen = { 0, 0, VMI_ACTION_END };
	uint64_t number, other, count = 0, roots[2], passed = 0, kinds[2] = { 0, 0 };
	uint8_t before[32], after[32];
	size_t root_count;
	pthread_t thread;

	ANSWERS(VMI_STATUS_OK, vmi_guest_kernel_memory(guest, &kernel, &error));
	ANSWERS(VMI_STATUS_OK, vmi_memory_read(kernel, symbol, before, sizeof before, &error));
	ANSWERS(VMI_STATUS_OK, vmi_events_open(machine, &session, &error));
	ANSWERS(VMI_STATUS_STATE, vmi_events_open(machine, &second, &error));
	ANSWERS(VMI_STATUS_NULL, vmi_events_set_trap(session, NULL, &number, &error));
	ANSWERS(VMI_STATUS_ARGUMENT, vmi_events_set_trap(session, &(vmi_trap){ .kind = VMI_EVENT_KIND_STOP }, &number, &error));
	ANSWERS(VMI_STATUS_NULL, vmi_events_set_trap(session, &(vmi_trap){ .root_count = 3 }, &number, &error));
	ANSWERS(VMI_STATUS_END, vmi_events_next(session, 0, &event, &error));
	ANSWERS(VMI_STATUS_OK, vmi_events_set_trap(session, &trap, &number, &error));

	ANSWERS(VMI_STATUS_OK, vmi_events_run(session, 20000, on_event, &seen, &count, &error));
	CHECK(seen.count == 5 && count == 5 && seen.wrong == 0);
	/* A callback that fails ends the call, and the guest goes on. */
	seen = (struct seen){ 0, 0, 1000 };
	ANSWERS(VMI_STATUS_CALLBACK, vmi_events_run(session, 20000, on_event, &seen, &count, &error));
	CHECK(seen.count == 5 && seen.wrong == 0);
	ANSWERS(VMI_STATUS_NULL, vmi_events_run(session, 0, NULL, NULL, NULL, &error));
	ANSWERS(VMI_STATUS_OK, vmi_events_run(session, 20000, on_step, kinds, NULL, &error));
	CHECK(kinds[0] >= 1 && kinds[1] == 3);
	ANSWERS(VMI_STATUS_OK, vmi_events_run(session, 20000, on_own, session, NULL, &error));

	ANSWERS(VMI_STATUS_OK, vmi_events_next(session, 20000, &event, &error));
	ANSWERS(VMI_STATUS_OK, vmi_event_get_info(event, &info, &error));
	ANSWERS(VMI_STATUS_OK, vmi_event_get_registers(event, &registers, &error));
	CHECK(info.trap == number && info.instruction == symbol && registers.rip == symbol);
	ANSWERS(VMI_STATUS_OK, vmi_event_reply(event, VMI_ACTION_RESUME, &registers, &error));
	/* One that nobody answers: the next call lets it go on. */
	ANSWERS(VMI_STATUS_OK, vmi_events_next(session, 20000, &event, &error));
	second = NULL;
	vmi_event *third;
	ANSWERS(VMI_STATUS_OK, vmi_events_next(session, 20000, &third, &error));
	ANSWERS(VMI_STATUS_CLOSED, vmi_event_get_info(event, &info, &error));
	vmi_event_close(third);
	vmi_event_close(third);

	/* Only in another process: nothing is seen. */
	ANSWERS(VMI_STATUS_OK, vmi_events_remove_trap(session, number, &error));
	ANSWERS(VMI_STATUS_OK, vmi_events_remove_trap(session, 777, &error));
	ANSWERS(VMI_STATUS_OK, vmi_guest_get_page_tables(guest, pid, roots, 2, &root_count, &error));
	trap.roots = roots, trap.root_count = root_count;
	ANSWERS(VMI_STATUS_OK, vmi_events_set_trap(session, &trap, &other, &error));
	ANSWERS(VMI_STATUS_END, vmi_events_next(session, 3000, &event, &error));
	CHECK(event == NULL);
	ANSWERS(VMI_STATUS_OK, vmi_events_get_passed_over(session, &passed, &error));
	CHECK(passed > 0);
	trap.roots = NULL, trap.root_count = 0;
	ANSWERS(VMI_STATUS_OK, vmi_events_remove_trap(session, other, &error));
	vmi_events_close(session);
	vmi_events_close(session);
	ANSWERS(VMI_STATUS_CLOSED, vmi_events_next(session, 0, &event, &error));

	/* Closed by its callback, while an event is held, and while another thread waits. */
	ANSWERS(VMI_STATUS_OK, vmi_events_open(machine, &session, &error));
	ANSWERS(VMI_STATUS_OK, vmi_events_set_trap(session, &trap, &number, &error));
	CHECK(vmi_events_run(session, 20000, on_close, session, &count, NULL) != VMI_STATUS_INTERNAL && count == 1);
	ANSWERS(VMI_STATUS_OK, vmi_events_open(machine, &session, &error));
	ANSWERS(VMI_STATUS_OK, vmi_events_set_trap(session, &trap, &number, &error));
	ANSWERS(VMI_STATUS_OK, vmi_events_next(session, 20000, &event, &error));
	vmi_events_close(session);
	ANSWERS(VMI_STATUS_CLOSED, vmi_event_get_info(event, &info, &error));
	ANSWERS(VMI_STATUS_OK, vmi_events_open(machine, &session, &error));
	pthread_create(&thread, NULL, wait_for_ever, session);
	usleep(100000);
	vmi_events_close(session);
	pthread_join(thread, NULL);
	ANSWERS(VMI_STATUS_OK, vmi_memory_read(kernel, symbol, after, sizeof after, &error));
	CHECK(!memcmp(before, after, sizeof before));
	vmi_memory_close(kernel);
}

int main(int argc, char **argv)
{
	vmi_pause *pause;
	uint64_t page, then;
	uint32_t pid;
	vmi_guest *again;

	if (argc != 5)
		return 2;
	pid = (uint32_t)strtoul(argv[2], NULL, 0);
	page = strtoull(argv[3], NULL, 0);
	found(argv[1]);
	ANSWERS(VMI_STATUS_OK, vmi_machine_open(argv[1], NULL, &machine, &error));
	ANSWERS(VMI_STATUS_OK, vmi_guest_attach(machine, NULL, &guest, &error));
	ANSWERS(VMI_STATUS_OK, vmi_guest_get_address(guest, argv[4], &symbol, &error));
	ANSWERS(VMI_STATUS_OK, vmi_machine_check(machine, &error));
	then = ticks(pid, page);
	pauses(pid, page);
	snapshots(pid, page);
	writes(pid, page);
	events(pid);
	abilities();
	/* Closing the machine lets a guest go on that is held. */
	ANSWERS(VMI_STATUS_OK, vmi_machine_pause(machine, &pause, &error));
	vmi_machine_close(machine);
	ANSWERS(VMI_STATUS_CLOSED, vmi_guest_get_address(guest, argv[4], &symbol, &error));
	ANSWERS(VMI_STATUS_OK, vmi_machine_open(argv[1], NULL, &machine, &error));
	ANSWERS(VMI_STATUS_OK, vmi_guest_attach(machine, NULL, &again, &error));
	guest = again;
	usleep(300000);
	CHECK(ticks(pid, page) > then);
	vmi_machine_close(machine);
	return finish("live");
}
