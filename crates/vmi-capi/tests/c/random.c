/*
 * Calls in random order with random arguments, right and wrong: random TARGET SEED STEPS THREADS
 *
 * A running guest does not survive it: its memory is written to, anywhere.
 *
 * Whatever is passed is defined by vmi.h: handles may be of another kind, closed, NULL or garbage, as they are keys; pointers are NULL or good. With more than one thread
 * all share their handles, and strings that belong to a list are looked at only before others see it.
 */
#include <pthread.h>
#include "check.h"

/* Handles that were given, by kind; what is thrown out stays open until the end. */
enum kind { NONE, OPTIONS, MACHINE, GUEST, MEMORY, PROCESSES, THREADS, MODULES, AREAS, SYMBOLS, ERROR, OTHER, KINDS };
#define POOL 8
static void *pool[KINDS][POOL];
static vmi_machine *image;
static vmi_guest *system_of_image;
static unsigned long steps;
static int threaded;

struct state {
	uint64_t random;
	uint64_t counts[2];
};

/* xorshift64 (Marsaglia, Journal of Statistical Software 8/14, 2003) */
static uint64_t next(struct state *state)
{
	state->random ^= state->random << 13;
	state->random ^= state->random >> 7;
	return state->random ^= state->random << 17;
}

static uint64_t below(struct state *state, uint64_t limit)
{
	return next(state) % limit;
}

/* A handle, mostly an open one of the kind that is wanted. */
static void *any(struct state *state, enum kind wanted)
{
	switch (below(state, 16)) {
	case 0:
		return NULL;
	case 1:
		return (void *)(uintptr_t)next(state);
	case 2:
		return image;
	case 3:
		return system_of_image;
	case 4:
		wanted = (enum kind)below(state, KINDS);
		break;
	default:
		if (wanted == MACHINE && below(state, 4))
			return image;
		if (wanted == GUEST && below(state, 4))
			return system_of_image;
	}
	return __atomic_load_n(&pool[wanted][below(state, POOL)], __ATOMIC_RELAXED);
}

static void keep(struct state *state, enum kind kind, void *handle)
{
	if (handle)
		__atomic_store_n(&pool[kind][below(state, POOL)], handle, __ATOMIC_RELAXED);
}

static uint64_t address(struct state *state)
{
	switch (below(state, 6)) {
	case 0:
		return next(state);
	case 1:
		return UINT64_MAX - below(state, 32);
	case 2:
		return below(state, 1 << 20);
	case 3:
		return 0xffff888000000000 + below(state, 1 << 27);
	case 4:
		return 0xffffffff80000000 + below(state, 1 << 27);
	default:
		return below(state, 1 << 28);
	}
}

static const char *name(struct state *state)
{
	static const char *const names[] = { NULL, "", "init_task", "linux_banner+0x10", "task_struct", "comm", "se.vruntime", "\xff\xfe", "+", "a+0x",
					     "list_head", "pid", "0x0-0x1000", "process", "/no/such", "mm.pgd", "...", "init_task+18446744073709551615" };

	return names[below(state, sizeof names / sizeof *names)];
}

static uint32_t mapping(const vmi_mapping *found, void *user_data)
{
	uint64_t *left = user_data;

	CHECK(found->kind <= VMI_MAPPING_KIND_UNREADABLE);
	return --*left ? 0 : 1;
}

static uint32_t event(vmi_event *event, void *user_data)
{
	(void)event, (void)user_data;
	return 6;
}

/* Looks at an error, and closes or keeps it. */
static void look(struct state *state, vmi_status status, vmi_error *error)
{
	CHECK((error != NULL) == (status > VMI_STATUS_END));
	CHECK(status != VMI_STATUS_INTERNAL);
	state->counts[status > VMI_STATUS_END]++;
	if (!error)
		return;
	CHECK(vmi_error_status(error) == status && strlen(vmi_error_message(error)) > 3);
	if (below(state, 20))
		vmi_error_close(error);
	else
		keep(state, ERROR, error);
}

/* What each call below takes first. */
static const enum kind takes[48] = {
	NONE, OPTIONS, OPTIONS, OPTIONS, NONE, MACHINE, MACHINE, MACHINE, MACHINE, MACHINE, MACHINE, MACHINE, GUEST, GUEST, MACHINE, MACHINE,
	MEMORY, MEMORY, MEMORY, MEMORY, MEMORY, MEMORY, MEMORY, MEMORY, MEMORY, MEMORY, MACHINE, GUEST, PROCESSES, GUEST, GUEST, GUEST,
	GUEST, THREADS, GUEST, GUEST, AREAS, GUEST, GUEST, GUEST, GUEST, MACHINE, MACHINE, MACHINE, OTHER, OTHER, MEMORY, ERROR,
};
/* And what it gives. */
static const enum kind gives[48] = {
	[0] = OPTIONS, [4] = MACHINE, [9] = GUEST, [10] = MEMORY, [11] = MEMORY, [12] = MEMORY, [13] = MEMORY, [27] = PROCESSES, [29] = PROCESSES,
	[30] = PROCESSES, [32] = THREADS, [34] = MODULES, [35] = AREAS, [38] = SYMBOLS, [42] = OTHER, [43] = OTHER, [45] = OTHER, [47] = MACHINE,
};

static void step(struct state *state)
{
	uint64_t which = below(state, 48);
	vmi_error *error = NULL, **place = below(state, 8) ? &error : NULL;
	size_t length = below(state, 2) ? below(state, 64) : below(state, 3 * 4096), count = 0;
	unsigned char *buffer = below(state, 10) ? malloc(length) : NULL; /* just as long: one byte more is found out */
	uint64_t at = address(state), number = 0;
	uint32_t pid = below(state, 3) ? (uint32_t)below(state, 100) : (uint32_t)next(state);
	char *text = NULL;
	void *handle = NULL, *self = any(state, takes[which]);
	vmi_status status = VMI_STATUS_OK;

	switch (which) {
	case 0: status = vmi_options_new((vmi_options **)&handle, place); break;
	case 1: status = vmi_options_set_raw_map(self, name(state), place); break;
	case 2: status = vmi_options_set_road(self, name(state), place); break;
	case 3: status = vmi_options_add_symbols(self, below(state, 4) ? NULL : name(state), place); break;
	case 4: status = vmi_machine_open(name(state), any(state, OPTIONS), (vmi_machine **)&handle, place); break;
	case 5: { vmi_machine_info info; status = vmi_machine_get_info(self, &info, place); break; }
	case 6: status = vmi_machine_get_name(self, &text, place); break;
	case 7: { vmi_region regions[3]; status = vmi_machine_get_memory_map(self, regions, below(state, 4), below(state, 5) ? &count : NULL, place); break; }
	case 8: status = vmi_machine_check(self, place); break;
	case 9:
		/* Attaching takes longest. */
		if (!below(state, 40))
			status = vmi_guest_attach(self, NULL, (vmi_guest **)&handle, place);
		else
			place = NULL;
		break;
	case 10: status = vmi_machine_physical_memory(self, (vmi_memory **)&handle, place); break;
	case 11: status = vmi_machine_address_space(self, at, (uint32_t)below(state, 6), (vmi_memory **)&handle, place); break;
	case 12: status = vmi_guest_kernel_memory(self, (vmi_memory **)&handle, place); break;
	case 13: status = vmi_guest_process_memory(self, pid, (vmi_memory **)&handle, place); break;
	case 14: status = vmi_machine_read(self, at, buffer, length, place); break;
	case 15: status = vmi_machine_write(self, at, buffer, length, place); break;
	case 16:
	case 17: status = vmi_memory_read(self, at, buffer, length, place); break;
	case 18: status = vmi_memory_read_symbol(self, name(state), buffer, length, place); break;
	case 19: {
		vmi_range padded[2];
		status = vmi_memory_read_lossy(self, at, buffer, length, padded, below(state, 3), &count, place);
		break;
	}
	case 20: status = vmi_memory_read_u64(self, at, below(state, 9) ? &number : NULL, place); break;
	case 21: status = vmi_memory_read_string(self, at, length, &text, place); break;
	case 22: status = vmi_memory_read_utf16(self, at, length, &text, place); break;
	case 23: status = vmi_memory_write(self, at, buffer, length, place); break;
	case 24: {
		const uint8_t *data;
		status = vmi_memory_view(self, at, length, &data, place);
		/* Other threads may close the machine. */
		if (!status && !threaded && length)
			number = data[0] + data[length - 1];
		break;
	}
	case 25: { vmi_translation found; status = vmi_memory_translate(self, at, &found, place); break; }
	case 26:
		number = 1 + below(state, 20);
		status = vmi_machine_each_mapping(self, at, (uint32_t)below(state, 6), at, next(state), mapping, &number, place);
		break;
	case 27: {
		vmi_process row;
		status = vmi_guest_list_processes(self, (vmi_processes **)&handle, place);
		if (!status && vmi_processes_next(handle, &row, NULL) == VMI_STATUS_OK)
			for (size_t i = 0; i < row.argument_count; i++)
				number += strlen(row.name) + strlen(row.arguments[i]);
		break;
	}
	case 28: {
		vmi_process row;
		vmi_seen_process seen;
		status = below(state, 2) ? vmi_processes_next(self, &row, place) : vmi_seen_processes_next(self, &seen, place);
		break;
	}
	case 29:
		/* The survey takes longest of what a guest is asked. */
		if (below(state, 16))
			status = vmi_guest_find_process(self, pid, (vmi_processes **)&handle, place);
		else
			status = vmi_guest_survey_processes(self, (vmi_seen_processes **)&handle, place);
		break;
	case 30: status = vmi_guest_process_of(self, at, (vmi_processes **)&handle, place); break;
	case 31: { uint64_t roots[2]; status = vmi_guest_get_page_tables(self, pid, roots, below(state, 3), &count, place); break; }
	case 32: status = vmi_guest_list_threads(self, (vmi_threads **)&handle, place); break;
	case 33: { vmi_thread row; status = vmi_threads_next(self, &row, place); break; }
	case 34: status = vmi_guest_list_modules(self, (vmi_modules **)&handle, place); break;
	case 35: status = vmi_guest_list_memory_areas(self, pid, (vmi_memory_areas **)&handle, place); break;
	case 36: { vmi_memory_area row; status = vmi_memory_areas_next(self, &row, place); break; }
	case 37: status = vmi_guest_get_address(self, name(state), &number, place); break;
	case 38: status = vmi_guest_list_symbols_at(self, at, (vmi_symbols **)&handle, place); break;
	case 39: status = vmi_guest_get_nearest_symbol(self, at, &text, &number, place); break;
	case 40: { vmi_field field; status = vmi_guest_get_field(self, name(state), name(state), &field, place); break; }
	case 41: { vmi_registers registers; status = vmi_machine_get_registers(self, (uint32_t)below(state, 3), &registers, place); break; }
	case 42: status = vmi_machine_pause(self, (vmi_pause **)&handle, place); break;
	case 43: status = vmi_events_open(self, (vmi_events **)&handle, place); break;
	case 44: {
		vmi_trap trap = { (uint32_t)below(state, 21), at, below(state, 20), NULL, 0, (uint32_t)below(state, 9), (uint32_t)below(state, 5), below(state, 2) };
		vmi_injection injection = { (uint32_t)below(state, 4), (uint8_t)next(state), below(state, 2), pid, at };
		uint32_t view = (uint32_t)below(state, 4);
		switch (below(state, 9)) {
		case 0: status = vmi_events_run(self, 1, event, NULL, &number, place); break;
		case 1: status = vmi_events_get_abilities(self, below(state, 9) ? &number : NULL, place); break;
		case 2: status = vmi_events_create_view(self, (uint32_t)below(state, 9), &view, place); break;
		case 3: status = vmi_events_destroy_view(self, view, place); break;
		case 4: status = vmi_events_allow(self, view, at, (uint32_t)below(state, 9), place); break;
		case 5: status = vmi_events_remap(self, view, at, below(state, 2) ? at : VMI_UNKNOWN_ADDRESS, place); break;
		case 6: status = vmi_events_switch_view(self, view + (uint32_t)below(state, 2) * 0x10000, place); break;
		case 7: status = vmi_events_inject(self, pid, below(state, 9) ? &injection : NULL, place); break;
		default: status = vmi_events_set_trap(self, below(state, 9) ? &trap : NULL, &number, place);
		}
		break;
	}
	case 45:
		if (below(state, 2)) {
			status = vmi_events_next(self, below(state, 3), (vmi_event **)&handle, place);
		} else if (below(state, 2)) {
			status = vmi_event_reply(self, (uint32_t)below(state, 7), NULL, place);
		} else {
			vmi_registers registers = { .known = 0 };
			vmi_reply reply = { .action = (uint32_t)below(state, 7), .emulation = (uint32_t)below(state, 5), .bytes = buffer, .byte_count = buffer ? length : 0,
					    .registers = below(state, 2) ? &registers : NULL, .set_view = below(state, 2), .view = (uint32_t)below(state, 3) };
			status = vmi_event_answer(self, below(state, 9) ? &reply : NULL, place);
		}
		break;
	case 46:
		self = any(state, (enum kind)below(state, KINDS));
		/* The machine and guest of all are closed at the end only, so that most calls do something. */
		if (self != image && self != system_of_image)
			vmi_machine_close(self), vmi_guest_close(self), vmi_memory_close(self), vmi_processes_close(self), vmi_threads_close(self);
		if (self != image && self != system_of_image)
			vmi_options_close(self), vmi_seen_processes_close(self), vmi_modules_close(self), vmi_memory_areas_close(self), vmi_symbols_close(self), vmi_error_close(self);
		if (below(state, 2))
			vmi_pause_close(self), vmi_events_close(self), vmi_event_close(self);
		place = NULL;
		break;
	case 47:
		/* What many a thread may read while another one closes it. */
		(void)vmi_error_status(self), (void)vmi_error_done(self), (void)vmi_error_address(self);
		status = vmi_machine_snapshot(below(state, 200) ? NULL : self, (vmi_machine **)&handle, NULL, place);
		break;
	}
	if (place)
		look(state, status, error);
	if (text)
		CHECK(status == VMI_STATUS_OK), number += strlen(text);
	CHECK(!handle || status == VMI_STATUS_OK);
	vmi_string_free(text);
	keep(state, gives[which], handle);
	free(buffer);
}

static void *run(void *user_data)
{
	struct state *state = user_data;

	for (unsigned long i = 0; i < steps; i++)
		step(state);
	return NULL;
}

int main(int argc, char **argv)
{
	struct state states[8] = { { 0, { 0, 0 } } };
	pthread_t threads[8];
	uint64_t good = 0, bad = 0;

	if (argc != 5)
		return 2;
	steps = strtoul(argv[3], NULL, 0);
	int count = atoi(argv[4]);
	threaded = count > 1;
	ANSWERS(VMI_STATUS_OK, vmi_machine_open(argv[1], NULL, &image, &error));
	ANSWERS(VMI_STATUS_OK, vmi_guest_attach(image, NULL, &system_of_image, &error));
	for (int i = 0; i < count && i < 8; i++) {
		states[i].random = (strtoull(argv[2], NULL, 0) + (uint64_t)i) * 0x9e3779b97f4a7c15 | 1;
		pthread_create(&threads[i], NULL, run, &states[i]);
	}
	for (int i = 0; i < count && i < 8; i++) {
		pthread_join(threads[i], NULL);
		good += states[i].counts[0], bad += states[i].counts[1];
	}
	/* Whatever is still open: keys go up by 16, but a program need not know; the pool does. What was thrown out of it is closed here as well. */
	vmi_machine_close(image);
	for (uintptr_t key = 16; vmi_open_handles() && key < ((uintptr_t)1 << 40); key += 16) {
		void *self = (void *)key;
		vmi_machine_close(self), vmi_guest_close(self), vmi_memory_close(self), vmi_processes_close(self), vmi_threads_close(self);
		vmi_options_close(self), vmi_seen_processes_close(self), vmi_modules_close(self), vmi_memory_areas_close(self), vmi_symbols_close(self), vmi_error_close(self);
		vmi_pause_close(self), vmi_events_close(self), vmi_event_close(self);
	}
	printf("%" PRIu64 " calls succeeded, %" PRIu64 " failed\n", good, bad);
	CHECK(good > 0 && bad > 0);
	return finish("random");
}
