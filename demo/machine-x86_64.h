/* SPDX-License-Identifier: GPL-2.0 */
/*
 * What of demo/machine.h is for x86-64 only: the program, and the processors' registers.
 * Change it together with demo/machine-arm64.h.
 */

#define EXIT_ERROR	KVM_EXIT_IO

/*
 * The program. rdi: the memory, rsi: its state, r8: GENS, r9: number of processors,
 * r10: which of them it is, r11: pages of each - 1, r12: KEY; rax: where it has got to.
 * Word 0 and word 511 of page p are (p << 8 | generation) ^ KEY, all others w are
 * (p << 9 | w) ^ KEY.
 */
asm(".pushsection .rodata\n"
    "guest_code:\n"
    "1:	imul $1664525, %rax, %rax\n"		/* visits all in one period */
    "	add $1013904223, %rax\n"
    "	and %r11, %rax\n"
    "	mov %rax, %rbx\n"
    "	imul %r9, %rbx\n"
    "	add %r10, %rbx\n"			/* rbx: the page's number */
    "	mov %rbx, %rcx\n"
    "	shl $12, %rcx\n"
    "	add %rdi, %rcx\n"			/* rcx: its address */
    "	xor %edx, %edx\n"
    "	mov %rbx, %r13\n"
    "	shr $6, %r13\n"				/* HOT is 64 */
    "	test $63, %bl\n"
    "	jnz 2f\n"
    "	movzbl (%r8, %r13), %edx\n"
    "2:	mov %rbx, %rbp\n"
    "	shl $8, %rbp\n"
    "	or %rdx, %rbp\n"
    "	xor %r12, %rbp\n"			/* rbp: what words 0 and 511 should be */
    "	mov (%rcx), %r14\n"
    "	cmp %rbp, %r14\n"
    "	jne 9f\n"
    "	mov 4088(%rcx), %r14\n"
    "	cmp %rbp, %r14\n"
    "	jne 9f\n"
    "	mov %rax, %r15\n"			/* and one of the others */
    "	shr $3, %r15\n"
    "	and $255, %r15\n"
    "	inc %r15\n"
    "	mov %rbx, %rbp\n"
    "	shl $9, %rbp\n"
    "	or %r15, %rbp\n"
    "	xor %r12, %rbp\n"
    "	mov (%rcx, %r15, 8), %r14\n"
    "	cmp %rbp, %r14\n"
    "	jne 9f\n"
    "	test $63, %bl\n"
    "	jnz 3f\n"
    "	inc %dl\n"
    "	mov %dl, (%r8, %r13)\n"
    "	mov %rbx, %rbp\n"
    "	shl $8, %rbp\n"
    "	or %rdx, %rbp\n"
    "	xor %r12, %rbp\n"
    "	mov %rbp, (%rcx)\n"
    "	mov %rbp, 4088(%rcx)\n"
    "3:	incq (%rsi)\n"
    "	jmp 1b\n"
    "9:	incq 8(%rsi)\n"
    "	mov %rbx, 16(%rsi)\n"
    "	mov %r14, 24(%rsi)\n"
    "	out %al, $16\n"
    "	jmp 3b\n"
    "guest_code_end:\n"
    ".popsection\n");
extern const char guest_code[], guest_code_end[];

struct registers {
	struct kvm_regs regs;
	struct kvm_sregs sregs;
};

static void get_registers(int fd, struct registers *r)
{
	if (ioctl(fd, KVM_GET_REGS, &r->regs) || ioctl(fd, KVM_GET_SREGS, &r->sregs))
		die("registers");
}

static void set_registers(int fd, struct registers *r)
{
	if (ioctl(fd, KVM_SET_SREGS, &r->sregs) || ioctl(fd, KVM_SET_REGS, &r->regs))
		die("registers");
}

static void make_vcpu(int fd)
{
	struct {
		struct kvm_cpuid2 head;
		struct kvm_cpuid_entry2 entry[128];
	} cpuid = { .head.nent = 128 };

	if (ioctl(kvm, KVM_GET_SUPPORTED_CPUID, &cpuid) || ioctl(fd, KVM_SET_CPUID2, &cpuid))
		die("a processor like this one");
}

/* Long mode, everything mapped where it is. */
static void boot_registers(int id)
{
	const struct kvm_segment code = {
		.limit = ~0U, .selector = 8, .type = 11, .present = 1, .s = 1, .l = 1, .g = 1,
	}, data = {
		.limit = ~0U, .selector = 16, .type = 3, .present = 1, .s = 1, .db = 1, .g = 1,
	};
	struct registers r;

	get_registers(vcpu[id].fd, &r);
	r.sregs.cr0 = 0x80050033;	/* PG AM WP NE ET MP PE */
	r.sregs.cr3 = TABLES;
	r.sregs.cr4 = 0x20;		/* PAE */
	r.sregs.efer = 0x500;		/* LMA LME */
	r.sregs.cs = code;
	r.sregs.ds = r.sregs.es = r.sregs.fs = r.sregs.gs = r.sregs.ss = data;
	r.regs = (struct kvm_regs) {
		.rip = CODE, .rflags = 2, .rdi = MEMORY, .rsi = STATE + id * sizeof(*state),
		.r8 = GENS, .r9 = nvcpus, .r10 = id, .r11 = npages / nvcpus - 1, .r12 = KEY,
	};
	set_registers(vcpu[id].fd, &r);
}

/*
 * Pages of 2 MiB: the processor that QEMU 7.2 emulates stops with a triple fault if pages
 * of 1 GiB are used in a machine whose memory is mapped by smaller ones.
 */
static void boot_memory(void)
{
	uint64_t *top = (void *)(low + TABLES), *next = top + 512, *last = next + 512;

	memcpy(low + CODE, guest_code, guest_code_end - guest_code);
	top[0] = (TABLES + PAGE) | 3;
	for (uint64_t i = 0; i <= (uint64_t)gigabytes; i++)
		next[i] = (TABLES + (2 + i) * PAGE) | 3;
	for (uint64_t i = 0; i < (gigabytes + 1) * 512UL; i++)
		last[i] = i << 21 | 0xe3;	/* present, writable, used, 2 MiB */
}

/* One of KVM's statistics, or 0 */
static uint64_t statistic(int stats, const char *name)
{
	union {
		struct kvm_stats_desc desc;
		char room[256];
	} u;
	struct kvm_stats_header head;
	uint64_t value;

	if (pread(stats, &head, sizeof(head), 0) != sizeof(head))
		return 0;
	for (uint32_t i = 0; i < head.num_desc; i++) {
		size_t len = sizeof(u.desc) + head.name_size;

		if (len > sizeof(u) || pread(stats, &u, len, head.desc_offset + i * len) != (ssize_t)len)
			break;
		if (!strcmp(u.desc.name, name) &&
		    pread(stats, &value, sizeof(value), head.data_offset + u.desc.offset) == sizeof(value))
			return value;
	}
	return 0;
}

/* How KVM maps the memory */
static void stage2_pages(uint64_t pages[3])
{
	int stats = ioctl(vm, KVM_GET_STATS_FD, 0);

	pages[0] = statistic(stats, "pages_1g");
	pages[1] = statistic(stats, "pages_2m");
	pages[2] = statistic(stats, "pages_4k");
	close(stats);
}
