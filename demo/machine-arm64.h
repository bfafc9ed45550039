/* SPDX-License-Identifier: GPL-2.0 */
/*
 * What of demo/machine.h is for arm64 only: the program, and the processors' registers.
 * Change it together with demo/machine-x86_64.h.
 */

#define EXIT_ERROR	KVM_EXIT_MMIO
#define DEVICE		(GIB - PAGE)	/* there is no memory: an access ends KVM_RUN */

/*
 * The program. x0: the memory, x1: its state, x2: GENS, x3: number of processors,
 * x4: which of them it is, x5: pages of each - 1, x6: KEY, x7: where it has got to,
 * x8: DEVICE. What is in a page is as on x86-64.
 */
asm(".pushsection .rodata\n"
    "	.balign 4\n"
    "guest_code:\n"
    "1:	mov w9, #0x660d\n"
    "	movk w9, #0x19, lsl #16\n"		/* 1664525: visits all in one period */
    "	mul x7, x7, x9\n"
    "	mov w9, #0xf35f\n"
    "	movk w9, #0x3c6e, lsl #16\n"		/* 1013904223 */
    "	add x7, x7, x9\n"
    "	and x7, x7, x5\n"
    "	madd x10, x7, x3, x4\n"			/* x10: the page's number */
    "	add x11, x0, x10, lsl #12\n"		/* x11: its address */
    "	mov x12, #0\n"
    "	lsr x13, x10, #6\n"			/* HOT is 64 */
    "	tst x10, #63\n"
    "	b.ne 2f\n"
    "	ldrb w12, [x2, x13]\n"
    "2:	orr x14, x12, x10, lsl #8\n"
    "	eor x14, x14, x6\n"			/* x14: what words 0 and 511 should be */
    "	ldr x15, [x11]\n"
    "	cmp x15, x14\n"
    "	b.ne 9f\n"
    "	ldr x15, [x11, #4088]\n"
    "	cmp x15, x14\n"
    "	b.ne 9f\n"
    "	ubfx x16, x7, #3, #8\n"			/* and one of the others */
    "	add x16, x16, #1\n"
    "	orr x14, x16, x10, lsl #9\n"
    "	eor x14, x14, x6\n"
    "	ldr x15, [x11, x16, lsl #3]\n"
    "	cmp x15, x14\n"
    "	b.ne 9f\n"
    "	tst x10, #63\n"
    "	b.ne 3f\n"
    "	add w12, w12, #1\n"
    "	strb w12, [x2, x13]\n"
    "	and x12, x12, #255\n"
    "	orr x14, x12, x10, lsl #8\n"
    "	eor x14, x14, x6\n"
    "	str x14, [x11]\n"
    "	str x14, [x11, #4088]\n"
    "3:	ldr x9, [x1]\n"
    "	add x9, x9, #1\n"
    "	str x9, [x1]\n"
    "	b 1b\n"
    "9:	ldr x9, [x1, #8]\n"
    "	add x9, x9, #1\n"
    "	str x9, [x1, #8]\n"
    "	str x10, [x1, #16]\n"
    "	str x15, [x1, #24]\n"
    "	str x15, [x8]\n"
    "	b 3b\n"
    "guest_code_end:\n"
    ".popsection\n");
/* Hidden: otherwise Debian 12's linker has both at the same place. */
extern const char guest_code[] __attribute__((visibility("hidden")));
extern const char guest_code_end[] __attribute__((visibility("hidden")));

#define X(n)	(KVM_REG_ARM64 | KVM_REG_SIZE_U64 | KVM_REG_ARM_CORE | 2 * (n))
#define PC	X(32)			/* after the stack pointer */
#define PSTATE	X(33)
#define SCTLR	ARM64_SYS_REG(3, 0, 1, 0, 0)
#define TTBR0	ARM64_SYS_REG(3, 0, 2, 0, 0)
#define TCR	ARM64_SYS_REG(3, 0, 2, 0, 2)
#define MAIR	ARM64_SYS_REG(3, 0, 10, 2, 0)
#define LAST	17			/* the program's registers are x0 to x17 */

static const uint64_t other_registers[] = { PC, PSTATE, MAIR, TCR, TTBR0, SCTLR };

struct registers {
	uint64_t x[LAST + 1], other[6];
};

static void access_registers(int fd, unsigned long request, struct registers *r)
{
	for (int i = 0; i <= LAST; i++) {
		struct kvm_one_reg reg = { X(i), (uintptr_t)&r->x[i] };

		if (ioctl(fd, request, &reg))
			die("register x%d", i);
	}
	for (int i = 0; i < 6; i++) {
		struct kvm_one_reg reg = { other_registers[i], (uintptr_t)&r->other[i] };

		if (ioctl(fd, request, &reg))
			die("register %#lx", other_registers[i]);
	}
}

static void get_registers(int fd, struct registers *r)
{
	access_registers(fd, KVM_GET_ONE_REG, r);
}

static void set_registers(int fd, struct registers *r)
{
	access_registers(fd, KVM_SET_ONE_REG, r);
}

static void make_vcpu(int fd)
{
	struct kvm_vcpu_init init;

	if (ioctl(vm, KVM_ARM_PREFERRED_TARGET, &init) || ioctl(fd, KVM_ARM_VCPU_INIT, &init))
		die("a processor like this one");
}

/* At EL1, everything mapped where it is. */
static void boot_registers(int id)
{
	struct registers r = {
		.x = { MEMORY, STATE + id * sizeof(*state), GENS, nvcpus, id, npages / nvcpus - 1,
			KEY, 0, DEVICE },
		.other = {
			CODE, 0x3c5,		/* EL1h, no interrupts */
			0xff,			/* memory 0: normal, write-back */
			0x200803519,		/* 39 bits by TTBR0 in 4 KiB, cached, shared */
			TABLES, 0x30d01805,	/* caches and MMU on */
		},
	};

	set_registers(vcpu[id].fd, &r);
}

static void boot_memory(void)
{
	uint64_t *top = (void *)(low + TABLES);

	memcpy(low + CODE, guest_code, guest_code_end - guest_code);
	for (uint64_t i = 0; i <= (uint64_t)gigabytes; i++)
		top[i] = i << 30 | 0x701;	/* used, shared, writable, 1 GiB */
}

/*
 * How KVM maps the memory, from the table that CONFIG_PTDUMP_STAGE2_DEBUGFS shows: lines
 * "first-last size level ...", sorted by address.
 */
static void stage2_pages(uint64_t pages[3])
{
	static const uint64_t page_size[3] = { GIB, GIB / 512, PAGE };
	char name[100], line[200];
	uint64_t first, last;
	int level;
	FILE *f;

	memset(pages, 0, 3 * sizeof(*pages));
	snprintf(name, sizeof(name), "/sys/kernel/debug/kvm/%d-%d/stage2_page_tables", getpid(), vm);
	f = fopen(name, "r");
	if (!f)
		die("%s", name);
	while (fgets(line, sizeof(line), f))
		if (sscanf(line, "%lx-%lx %*s %d", &first, &last, &level) == 3 && level >= 1 &&
		    level <= 3 && strchr(line, 'R'))	/* what is not mapped cannot be read */
			pages[level - 1] += (last - first) / page_size[level - 1];
	fclose(f);
}
