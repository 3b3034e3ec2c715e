/*
 * Every function on a frozen machine, rightly and wrongly: api IMAGE BANNER
 *
 * BANNER is how the kernel's linux_banner begins. In ANSWERS, `&error` is where the call puts its error.
 */
#include <pthread.h>
#include "check.h"

static void without_handles(void)
{
	vmi_machine *machine = (vmi_machine *)1;
	vmi_guest *guest;
	vmi_memory *memory;
	vmi_options *options;
	vmi_events *events;
	vmi_processes *list;
	vmi_process process;
	vmi_machine_info info;
	char *text = (char *)1;
	uint64_t number;
	char byte;

	ANSWERS(VMI_STATUS_NULL, vmi_machine_open(NULL, NULL, &machine, &error));
	CHECK(machine == NULL);
	ANSWERS(VMI_STATUS_NULL, vmi_machine_open("x", NULL, NULL, &error));
	ANSWERS(VMI_STATUS_OPEN, vmi_machine_open("/no/such/image", NULL, &machine, &error));
	ANSWERS(VMI_STATUS_OPEN, vmi_machine_open("qemu:/no/such/guest.qmp", NULL, &machine, &error));
	ANSWERS(VMI_STATUS_OPEN, vmi_machine_open("\xff\xfe", NULL, &machine, &error));
	ANSWERS(VMI_STATUS_CLOSED, vmi_machine_open("x", (vmi_options *)(uintptr_t)0x7fffffff0, &machine, &error));
	ANSWERS(VMI_STATUS_NULL, vmi_machine_get_info(NULL, &info, &error));
	ANSWERS(VMI_STATUS_NULL, vmi_machine_get_name(NULL, &text, &error));
	CHECK(text == NULL);
	ANSWERS(VMI_STATUS_NULL, vmi_machine_check(NULL, &error));
	ANSWERS(VMI_STATUS_NULL, vmi_machine_read(NULL, 0, &byte, 1, &error));
	ANSWERS(VMI_STATUS_NULL, vmi_guest_attach(NULL, NULL, &guest, &error));
	ANSWERS(VMI_STATUS_NULL, vmi_guest_get_address(NULL, "x", &number, &error));
	ANSWERS(VMI_STATUS_NULL, vmi_guest_list_processes(NULL, &list, &error));
	ANSWERS(VMI_STATUS_NULL, vmi_processes_next(NULL, &process, &error));
	ANSWERS(VMI_STATUS_NULL, vmi_machine_physical_memory(NULL, &memory, &error));
	ANSWERS(VMI_STATUS_NULL, vmi_events_open(NULL, &events, &error));
	ANSWERS(VMI_STATUS_CLOSED, vmi_machine_check((vmi_machine *)&byte, &error));
	ANSWERS(VMI_STATUS_CLOSED, vmi_machine_check((vmi_machine *)(uintptr_t)-1, &error));
	/* Without a place for the error there is still the status. */
	CHECK(vmi_machine_check(NULL, NULL) == VMI_STATUS_NULL);
	CHECK(vmi_error_status(NULL) == VMI_STATUS_NULL && vmi_error_done(NULL) == 0 && *vmi_error_message(NULL));
	CHECK(vmi_error_address((vmi_error *)&byte) == VMI_UNKNOWN_ADDRESS);
	CHECK(!strcmp(vmi_status_name(VMI_STATUS_HOLE), "VMI_STATUS_HOLE") && !strcmp(vmi_status_name(9999), "unknown"));

	vmi_machine_close(NULL), vmi_guest_close(NULL), vmi_memory_close(NULL), vmi_pause_close(NULL), vmi_events_close(NULL);
	vmi_event_close(NULL), vmi_processes_close(NULL), vmi_error_close(NULL), vmi_string_free(NULL), vmi_options_close(NULL);
	vmi_machine_close((vmi_machine *)&byte);

	ANSWERS(VMI_STATUS_OK, vmi_options_new(&options, &error));
	ANSWERS(VMI_STATUS_ARGUMENT, vmi_options_set_raw_map(options, "nonsense", &error));
	ANSWERS(VMI_STATUS_ARGUMENT, vmi_options_set_road(options, "broad", &error));
	ANSWERS(VMI_STATUS_ARGUMENT, vmi_options_set_road(options, "\xff", &error));
	ANSWERS(VMI_STATUS_NULL, vmi_options_set_road(options, NULL, &error));
	ANSWERS(VMI_STATUS_OK, vmi_options_set_road(options, "process", &error));
	ANSWERS(VMI_STATUS_OK, vmi_options_set_allow_truncated(options, 77, &error));
	ANSWERS(VMI_STATUS_OK, vmi_options_add_symbols(options, "/no/such/file", &error));
	ANSWERS(VMI_STATUS_WRONG_HANDLE, vmi_machine_check((vmi_machine *)options, &error));
	ANSWERS(VMI_STATUS_WRONG_HANDLE, vmi_events_next((vmi_events *)options, 0, &(vmi_event *){ NULL }, &error));
	vmi_machine_close((vmi_machine *)options); /* of another kind: left alone */
	ANSWERS(VMI_STATUS_NULL, vmi_options_set_base(options, NULL, &error));
	ANSWERS(VMI_STATUS_OK, vmi_options_set_base(options, "/no/such/base", &error));
	ANSWERS(VMI_STATUS_NULL, vmi_options_set_snapshot(options, NULL, &error));
	ANSWERS(VMI_STATUS_OK, vmi_options_set_snapshot(options, "nowhere", &error));
	ANSWERS(VMI_STATUS_OK, vmi_options_set_download(options, 0, &error));
	ANSWERS(VMI_STATUS_OK, vmi_options_set_allow_truncated(options, 0, &error));
	vmi_options_close(options);
	vmi_options_close(options);
	ANSWERS(VMI_STATUS_CLOSED, vmi_options_set_allow_truncated(options, 0, &error));
}

static void of_machine(vmi_machine *machine)
{
	vmi_machine_info info;
	vmi_region regions[64];
	vmi_pause *pause;
	vmi_events *events;
	vmi_registers registers = { 0 };
	vmi_written written;
	size_t count = 0;
	uint64_t total = 0;
	char *name, page[4096];
	vmi_error *error;

	ANSWERS(VMI_STATUS_OK, vmi_machine_check(machine, &error));
	ANSWERS(VMI_STATUS_OK, vmi_machine_get_info(machine, &info, &error));
	CHECK(info.frozen && info.region_count > 0 && info.memory_size > 0 && info.memory_end >= info.memory_size);
	CHECK(!(info.capabilities & (VMI_CAN_WRITE_MEMORY | VMI_CAN_PAUSE | VMI_CAN_REPORT_EVENTS)));
	ANSWERS(VMI_STATUS_NULL, vmi_machine_get_info(machine, NULL, &error));
	ANSWERS(VMI_STATUS_OK, vmi_machine_get_name(machine, &name, &error));
	CHECK(name && *name);
	vmi_string_free(name);

	ANSWERS(VMI_STATUS_OK, vmi_machine_get_memory_map(machine, NULL, 0, &count, &error));
	CHECK(count == info.region_count && count <= 64);
	ANSWERS(VMI_STATUS_OK, vmi_machine_get_memory_map(machine, regions, 64, &count, &error));
	for (size_t i = 0; i < count; i++)
		total += regions[i].end - regions[i].start;
	CHECK(total == info.memory_size && regions[count - 1].end == info.memory_end);
	ANSWERS(VMI_STATUS_NULL, vmi_machine_get_memory_map(machine, NULL, 5, &count, &error));
	ANSWERS(VMI_STATUS_OUT_OF_RANGE, vmi_machine_get_memory_map(machine, regions, SIZE_MAX, &count, &error));

	ANSWERS(VMI_STATUS_OK, vmi_machine_read(machine, regions[0].start, page, sizeof page, &error));
	ANSWERS(VMI_STATUS_OK, vmi_machine_read(machine, regions[0].start, NULL, 0, &error));
	ANSWERS(VMI_STATUS_NULL, vmi_machine_read(machine, regions[0].start, NULL, 1, &error));
	ANSWERS(VMI_STATUS_OUT_OF_RANGE, vmi_machine_read(machine, 0, page, SIZE_MAX, &error));
	ANSWERS(VMI_STATUS_HOLE, vmi_machine_read(machine, UINT64_MAX - 7, page, 64, &error)); /* there is no memory even before the end */
	CHECK(vmi_machine_read(machine, info.memory_end - 16, page, 64, &error) == VMI_STATUS_HOLE);
	CHECK(vmi_error_done(error) == 16 && vmi_error_address(error) == info.memory_end);
	vmi_error_close(error);

	ANSWERS(VMI_STATUS_UNSUPPORTED, vmi_machine_write(machine, 0, "x", 1, &error));
	ANSWERS(VMI_STATUS_UNSUPPORTED, vmi_machine_pause(machine, &pause, &error));
	CHECK(pause == NULL);
	ANSWERS(VMI_STATUS_UNSUPPORTED, vmi_events_open(machine, &events, &error));
	ANSWERS(VMI_STATUS_UNSUPPORTED, vmi_events_open(machine, &events, &error)); /* the first try left nothing behind */
	ANSWERS(VMI_STATUS_UNSUPPORTED, vmi_machine_set_registers(machine, 0, &registers, &error));
	ANSWERS(VMI_STATUS_NULL, vmi_machine_set_registers(machine, 0, NULL, &error));
	ANSWERS(VMI_STATUS_ARGUMENT, vmi_machine_write_image(machine, "/dev/null", 99, NULL, NULL, &written, &error));
	ANSWERS(VMI_STATUS_WRITE_IMAGE, vmi_machine_write_image(machine, "/no/such/directory/x", VMI_FORMAT_RAW, NULL, NULL, NULL, &error));
}

static uint32_t count_mapping(const vmi_mapping *mapping, void *user_data)
{
	uint64_t *numbers = user_data;

	numbers[0]++;
	if (mapping->kind == VMI_MAPPING_KIND_PAGES)
		numbers[1] += mapping->length;
	CHECK((mapping->message != NULL) == (mapping->kind == VMI_MAPPING_KIND_UNREADABLE));
	return numbers[0] == numbers[2] ? 42 : 0;
}

static void of_memory(vmi_machine *machine, vmi_guest *guest, const char *banner)
{
	vmi_memory *kernel, *physical, *tables, *init;
	vmi_translation translation;
	vmi_range padded[8];
	vmi_processes *one;
	vmi_process process;
	uint64_t at, word, numbers[3] = { 0, 0, 0 };
	uint8_t bytes[64], again[64], u8;
	uint16_t u16;
	uint32_t u32;
	size_t count, length = strlen(banner);
	const uint8_t *view;
	char *text;
	char big[3 * 4096];

	ANSWERS(VMI_STATUS_OK, vmi_guest_kernel_memory(guest, &kernel, &error));
	ANSWERS(VMI_STATUS_OK, vmi_machine_physical_memory(machine, &physical, &error));
	ANSWERS(VMI_STATUS_OK, vmi_guest_get_address(guest, "linux_banner", &at, &error));
	ANSWERS(VMI_STATUS_OK, vmi_memory_read_string(kernel, at, 1024, &text, &error));
	CHECK(text && !strncmp(text, banner, length));
	vmi_string_free(text);
	ANSWERS(VMI_STATUS_UNTERMINATED, vmi_memory_read_string(kernel, at, 4, &text, &error));
	CHECK(text == NULL);
	ANSWERS(VMI_STATUS_OK, vmi_memory_read_symbol(kernel, "linux_banner+0x2", bytes, sizeof bytes, &error));
	CHECK(!memcmp(bytes, banner + 2, length - 2 < sizeof bytes ? length - 2 : sizeof bytes));
	ANSWERS(VMI_STATUS_NO_SYMBOL, vmi_memory_read_symbol(kernel, "no_such_symbol", bytes, 8, &error));
	ANSWERS(VMI_STATUS_ARGUMENT, vmi_memory_read_symbol(kernel, "linux_banner+x", bytes, 8, &error));
	ANSWERS(VMI_STATUS_ARGUMENT, vmi_memory_read_symbol(physical, "linux_banner", bytes, 8, &error));

	/* The same bytes by another way: translated by hand. */
	ANSWERS(VMI_STATUS_OK, vmi_memory_read(kernel, at, bytes, sizeof bytes, &error));
	ANSWERS(VMI_STATUS_OK, vmi_memory_translate(kernel, at, &translation, &error));
	CHECK(!translation.user && !(translation.page_size & (translation.page_size - 1)));
	ANSWERS(VMI_STATUS_OK, vmi_memory_read(physical, translation.at, again, sizeof again, &error));
	CHECK(!memcmp(bytes, again, sizeof bytes));
	ANSWERS(VMI_STATUS_OK, vmi_memory_view(physical, translation.at, sizeof bytes, &view, &error));
	CHECK(view && !memcmp(bytes, view, sizeof bytes));
	ANSWERS(VMI_STATUS_OK, vmi_memory_view(kernel, at, sizeof bytes, &view, &error));
	CHECK(view && !memcmp(bytes, view, sizeof bytes));
	ANSWERS(VMI_STATUS_ARGUMENT, vmi_memory_translate(physical, 0, &translation, &error));
	ANSWERS(VMI_STATUS_OK, vmi_memory_read_u8(kernel, at, &u8, &error));
	ANSWERS(VMI_STATUS_OK, vmi_memory_read_u16(kernel, at, &u16, &error));
	ANSWERS(VMI_STATUS_OK, vmi_memory_read_u32(kernel, at, &u32, &error));
	ANSWERS(VMI_STATUS_OK, vmi_memory_read_u64(kernel, at, &word, &error));
	CHECK(u8 == bytes[0] && !memcmp(&u16, bytes, 2) && !memcmp(&u32, bytes, 4) && !memcmp(&word, bytes, 8));
	ANSWERS(VMI_STATUS_NULL, vmi_memory_read_u64(kernel, at, NULL, &error));
	ANSWERS(VMI_STATUS_FAULT, vmi_memory_read_u64(kernel, 8, &word, &error));
	ANSWERS(VMI_STATUS_UNSUPPORTED, vmi_memory_write_symbol(kernel, "linux_banner", "x", 1, &error));

	memset(big, 1, sizeof big);
	ANSWERS(VMI_STATUS_OK, vmi_memory_read_lossy(kernel, 0x1000, big, sizeof big, padded, 8, &count, &error));
	CHECK(count == 1 && padded[0].start == 0 && padded[0].end == sizeof big && !big[0] && !big[sizeof big - 1]);
	ANSWERS(VMI_STATUS_OK, vmi_memory_read_lossy(kernel, 0x1000, big, sizeof big, NULL, 0, NULL, &error));

	/* The page tables of process 1 map the kernel where they are not isolated, and its own memory anyhow. */
	ANSWERS(VMI_STATUS_OK, vmi_guest_find_process(guest, 1, &one, &error));
	ANSWERS(VMI_STATUS_OK, vmi_processes_next(one, &process, &error));
	CHECK(process.pid == 1 && process.page_table != VMI_UNKNOWN_ADDRESS && process.arguments && process.argument_count);
	CHECK(process.arguments && process.arguments[process.argument_count] == NULL);
	ANSWERS(VMI_STATUS_END, vmi_processes_next(one, &process, &error));
	vmi_processes_close(one);
	ANSWERS(VMI_STATUS_OK, vmi_machine_address_space(machine, process.page_table, VMI_PAGING_MODE_LEVEL4, &tables, &error));
	ANSWERS(VMI_STATUS_ARGUMENT, vmi_machine_address_space(machine, 0, VMI_PAGING_MODE_NONE, &init, &error));
	ANSWERS(VMI_STATUS_OK, vmi_guest_process_memory(guest, 1, &init, &error));
	ANSWERS(VMI_STATUS_NO_OBJECT, vmi_guest_process_memory(guest, 4000000, &(vmi_memory *){ NULL }, &error));
	ANSWERS(VMI_STATUS_OK,
		vmi_machine_each_mapping(machine, process.page_table, VMI_PAGING_MODE_LEVEL4, 0, 0x7fffffffffff, count_mapping, numbers, &error));
	CHECK(numbers[0] > 10 && numbers[1] > 16 * 4096);
	numbers[2] = numbers[0], numbers[0] = 0;
	ANSWERS(VMI_STATUS_CALLBACK,
		vmi_machine_each_mapping(machine, process.page_table, VMI_PAGING_MODE_LEVEL4, 0, 0x7fffffffffff, count_mapping, numbers, &error));
	ANSWERS(VMI_STATUS_NULL, vmi_machine_each_mapping(machine, 0, VMI_PAGING_MODE_LEVEL4, 0, 1, NULL, NULL, &error));
	ANSWERS(VMI_STATUS_ARGUMENT, vmi_machine_each_mapping(machine, 0, 17, 0, 1, count_mapping, numbers, &error));

	vmi_memory_close(init), vmi_memory_close(tables), vmi_memory_close(physical), vmi_memory_close(kernel);
	ANSWERS(VMI_STATUS_CLOSED, vmi_memory_read_u64(kernel, at, &word, &error));
}

/* Goes through a list and touches what each row points at. */
#define EACH(type, row_type, open_call, next, close, text)                                                                      \
	do {                                                                                                                    \
		type *list;                                                                                                     \
		row_type row;                                                                                                   \
		size_t rows = 0, letters = 0;                                                                                   \
		vmi_status status;                                                                                              \
		ANSWERS(VMI_STATUS_OK, open_call);                                                                              \
		while ((status = next(list, &row, NULL)) != VMI_STATUS_END)                                                     \
			if (status == VMI_STATUS_OK)                                                                            \
				rows++, letters += (text) ? strlen(text) : 0;                                                   \
		CHECK(rows > 0 && letters > 0);                                                                                 \
		ANSWERS(VMI_STATUS_NULL, next(list, NULL, &error));                                                             \
		close(list);                                                                                                    \
		close(list);                                                                                                    \
		ANSWERS(VMI_STATUS_CLOSED, next(list, &row, &error));                                                           \
	} while (0)

static void of_guest(vmi_guest *guest)
{
	vmi_system system;
	vmi_field field, parent;
	vmi_symbols *symbols;
	vmi_symbol symbol;
	vmi_strings *strings;
	vmi_processes *list;
	uint64_t at, offset, size, roots[8];
	size_t count;
	char *text;

	ANSWERS(VMI_STATUS_OK, vmi_guest_get_system(guest, &system, &error));
	CHECK(system == VMI_SYSTEM_LINUX);
	ANSWERS(VMI_STATUS_OK, vmi_guest_get_version(guest, &text, &error));
	CHECK(!strncmp(text, "Linux ", 6));
	vmi_string_free(text);
	ANSWERS(VMI_STATUS_OK, vmi_guest_get_remarks(guest, &strings, &error));
	vmi_strings_close(strings);

	EACH(vmi_processes, vmi_process, vmi_guest_list_processes(guest, &list, &error), vmi_processes_next, vmi_processes_close, row.name);
	EACH(vmi_threads, vmi_thread, vmi_guest_list_threads(guest, &list, &error), vmi_threads_next, vmi_threads_close, row.name);
	EACH(vmi_seen_processes, vmi_seen_process, vmi_guest_survey_processes(guest, &list, &error), vmi_seen_processes_next, vmi_seen_processes_close,
	     row.name);
	EACH(vmi_modules, vmi_module, vmi_guest_list_modules(guest, &list, &error), vmi_modules_next, vmi_modules_close, row.name);
	EACH(vmi_memory_areas, vmi_memory_area, vmi_guest_list_memory_areas(guest, 1, &list, &error), vmi_memory_areas_next,
	     vmi_memory_areas_close, row.name);
	EACH(vmi_log, vmi_log_record, vmi_guest_read_log(guest, &list, &error), vmi_log_next, vmi_log_close, row.text);
	EACH(vmi_strings, const char *, vmi_guest_get_environment(guest, 1, &list, &error), vmi_strings_next, vmi_strings_close, row);
	EACH(vmi_strings, const char *, vmi_guest_list_structures(guest, &list, &error), vmi_strings_next, vmi_strings_close, row);
	EACH(vmi_symbols, vmi_symbol, vmi_guest_list_symbols(guest, NULL, &list, &error), vmi_symbols_next, vmi_symbols_close, row.name);

	ANSWERS(VMI_STATUS_OK, vmi_guest_get_address(guest, "init_task", &at, &error));
	ANSWERS(VMI_STATUS_OK, vmi_guest_list_symbols(guest, "init_task", &symbols, &error));
	ANSWERS(VMI_STATUS_OK, vmi_symbols_next(symbols, &symbol, &error));
	CHECK(!strcmp(symbol.name, "init_task") && symbol.address == at && symbol.kind && !symbol.module);
	vmi_symbols_close(symbols);
	ANSWERS(VMI_STATUS_OK, vmi_guest_get_nearest_symbol(guest, at + 5, &text, &offset, &error));
	CHECK(text && !strcmp(text, "init_task") && offset == 5);
	vmi_string_free(text);
	ANSWERS(VMI_STATUS_NULL, vmi_guest_get_nearest_symbol(guest, at, &text, NULL, &error));
	CHECK(text == NULL);
	ANSWERS(VMI_STATUS_OK, vmi_guest_list_symbols_at(guest, at, &symbols, &error));
	ANSWERS(VMI_STATUS_OK, vmi_symbols_next(symbols, &symbol, &error));
	vmi_symbols_close(symbols);

	ANSWERS(VMI_STATUS_OK, vmi_guest_get_field(guest, "task_struct", "comm", &field, &error));
	CHECK(field.size == 16 && field.bit_width == 0); /* TASK_COMM_LEN, include/linux/sched.h */
	ANSWERS(VMI_STATUS_OK, vmi_guest_get_field(guest, "task_struct", "se", &parent, &error));
	ANSWERS(VMI_STATUS_OK, vmi_guest_get_field(guest, "task_struct", "se.vruntime", &field, &error));
	CHECK(field.offset > parent.offset && field.offset < parent.offset + parent.size && field.size == 8);
	ANSWERS(VMI_STATUS_OK, vmi_guest_get_size(guest, "task_struct", &size, &error));
	CHECK(parent.offset + parent.size <= size);
	ANSWERS(VMI_STATUS_OK, vmi_guest_get_size(guest, "list_head", &size, &error));
	CHECK(size == 16);
	ANSWERS(VMI_STATUS_OK, vmi_guest_get_pointer_size(guest, &size, &error));
	CHECK(size == 8);
	ANSWERS(VMI_STATUS_NO_TYPE, vmi_guest_get_field(guest, "task_struct", "no_such_member", &field, &error));
	ANSWERS(VMI_STATUS_NO_TYPE, vmi_guest_get_size(guest, "no_such_structure", &size, &error));
	ANSWERS(VMI_STATUS_NULL, vmi_guest_get_field(guest, NULL, NULL, &field, &error));

	ANSWERS(VMI_STATUS_OK, vmi_guest_get_page_tables(guest, 1, roots, 8, &count, &error));
	CHECK(count >= 1 && count <= 2);
	ANSWERS(VMI_STATUS_OK, vmi_guest_process_of(guest, roots[0], &list, &error));
	vmi_process process;
	ANSWERS(VMI_STATUS_OK, vmi_processes_next(list, &process, &error));
	CHECK(process.pid == 1);
	vmi_processes_close(list);
	ANSWERS(VMI_STATUS_OK, vmi_guest_process_of(guest, 0x10, &list, &error));
	ANSWERS(VMI_STATUS_END, vmi_processes_next(list, &process, &error));
	vmi_processes_close(list);
	vmi_seen_processes *seen_list;
	vmi_seen_process seen;
	ANSWERS(VMI_STATUS_OK, vmi_guest_survey_processes(guest, &seen_list, &error));
	ANSWERS(VMI_STATUS_OK, vmi_seen_processes_next(seen_list, &seen, &error));
	CHECK(seen.pid == 1 && !seen.hidden && !seen.exited && seen.unknown_to == 0 && seen.object == process.object && seen.physical == VMI_UNKNOWN_ADDRESS);
	CHECK(seen.known_to == (VMI_PROCESS_VIEW_LIST | VMI_PROCESS_VIEW_ID_TABLE | VMI_PROCESS_VIEW_CHILDREN));
	vmi_seen_processes_close(seen_list);
	ANSWERS(VMI_STATUS_OK, vmi_guest_get_page_tables(guest, 2, roots, 8, &count, &error));
	CHECK(count == 0); /* kthreadd */
	ANSWERS(VMI_STATUS_OK, vmi_guest_get_executable(guest, 1, &text, &error));
	CHECK(text && *text == '/');
	vmi_string_free(text);
	ANSWERS(VMI_STATUS_NO_OBJECT, vmi_guest_find_process(guest, 4000000, &list, &error));
	CHECK(list == NULL);
}

struct work {
	vmi_machine *machine;
	vmi_guest *guest;
};

static void *read_much(void *user_data)
{
	struct work *work = user_data;
	vmi_memory *kernel;
	uint64_t word, at;

	ANSWERS(VMI_STATUS_OK, vmi_guest_get_address(work->guest, "init_task", &at, &error));
	ANSWERS(VMI_STATUS_OK, vmi_guest_kernel_memory(work->guest, &kernel, &error));
	for (int i = 0; i < 500; i++) {
		char page[4096];
		vmi_processes *list;
		vmi_process process;

		ANSWERS(VMI_STATUS_OK, vmi_machine_read(work->machine, (uint64_t)(i % 16) * 4096, page, i % 16 ? sizeof page : 0, &error));
		ANSWERS(VMI_STATUS_OK, vmi_memory_read_u64(kernel, at, &word, &error));
		if (i % 100)
			continue;
		ANSWERS(VMI_STATUS_OK, vmi_guest_list_processes(work->guest, &list, &error));
		ANSWERS(VMI_STATUS_OK, vmi_processes_next(list, &process, &error));
		vmi_processes_close(list);
	}
	vmi_memory_close(kernel);
	return NULL;
}

static void *close_one(void *handle)
{
	vmi_machine_close(handle);
	return NULL;
}

static void of_threads(vmi_machine *machine, vmi_guest *guest)
{
	struct work work = { machine, guest };
	pthread_t threads[4];

	for (int i = 0; i < 4; i++)
		pthread_create(&threads[i], NULL, read_much, &work);
	for (int i = 0; i < 4; i++)
		pthread_join(threads[i], NULL);
}

int main(int argc, char **argv)
{
	vmi_machine *machine, *copy;
	vmi_guest *guest, *second;
	vmi_memory *memory;
	vmi_pause *pause = NULL;
	pthread_t threads[4];
	uint64_t word;

	if (argc != 3)
		return 2;
	without_handles();
	CHECK(vmi_open_handles() == 0);
	ANSWERS(VMI_STATUS_OK, vmi_machine_open(argv[1], NULL, &machine, &error));
	of_machine(machine);
	ANSWERS(VMI_STATUS_OK, vmi_guest_attach(machine, NULL, &guest, &error));
	ANSWERS(VMI_STATUS_OK, vmi_guest_attach(machine, NULL, &second, &error));
	vmi_guest_close(second);
	of_memory(machine, guest, argv[2]);
	of_guest(guest);
	of_threads(machine, guest);

	/* Of what came from a machine nothing is left when it is closed; lists are. */
	vmi_processes *list;
	vmi_process process;
	ANSWERS(VMI_STATUS_OK, vmi_guest_list_processes(guest, &list, &error));
	ANSWERS(VMI_STATUS_OK, vmi_guest_kernel_memory(guest, &memory, &error));
	for (int i = 0; i < 4; i++)
		pthread_create(&threads[i], NULL, close_one, machine);
	for (int i = 0; i < 4; i++)
		pthread_join(threads[i], NULL);
	ANSWERS(VMI_STATUS_CLOSED, vmi_machine_check(machine, &error));
	ANSWERS(VMI_STATUS_CLOSED, vmi_memory_read_u64(memory, 0, &word, &error));
	ANSWERS(VMI_STATUS_CLOSED, vmi_guest_get_address(guest, "x", &word, &error));
	ANSWERS(VMI_STATUS_CLOSED, vmi_machine_pause(machine, &pause, &error));
	ANSWERS(VMI_STATUS_CLOSED, vmi_machine_snapshot(machine, &copy, NULL, &error));
	ANSWERS(VMI_STATUS_OK, vmi_processes_next(list, &process, &error));
	CHECK(*process.name);
	vmi_guest_close(guest), vmi_memory_close(memory);
	vmi_processes_close(list);
	return finish("api");
}
