/* In a kernel's place on a Raspberry Pi 4: says on the board's console the line that it was given, and waits. A kernel of 37 MB takes
   minutes to load from QEMU's card. The head is what U-Boot's `booti` looks for; caches are off, so bytes are read one by one. */
__asm__(".section .head, \"ax\"\n"
        "    b start\n    .long 0\n    .quad 0\n    .quad 0x20000\n    .quad 10\n    .quad 0, 0, 0\n    .ascii \"ARM\\x64\"\n    .long 0\n"
        "start:\n    adr x1, start\n    add x1, x1, #0x10, lsl #12\n    mov sp, x1\n    bl say\n0:  wfi\n    b 0b\n");

typedef unsigned char byte;
typedef unsigned int word;

static word number(const byte *at) {
    return (word)at[0] << 24 | (word)at[1] << 16 | (word)at[2] << 8 | at[3];
}

static void put(byte letter) {
    volatile word *serial = (volatile word *)0xfe215040;
    while (!(serial[5] & 0x20)) {
    }
    serial[0] = letter;
}

static void print(const byte *text) {
    for (; *text; text++) put(*text);
}

static int same(const byte *a, const byte *b) {
    for (; *a && *a == *b; a++, b++) {
    }
    return *a == *b;
}

/* Walks the device tree to /chosen's `bootargs`, which no other node has. */
void say(const byte *tree) {
    const byte *at = tree + number(tree + 8), *names = tree + number(tree + 12);
    for (;;) {
        word token = number(at);
        at += 4;
        if (token == 1) {
            word length = 1;
            while (at[length - 1]) length++;
            at += (length + 3) & ~3u;
        } else if (token == 3) {
            word length = number(at);
            const byte *name = names + number(at + 4);
            at += 8;
            if (same(name, (const byte *)"bootargs")) {
                print((const byte *)"\r\nKernel command line: ");
                print(at);
                print((const byte *)"\r\n");
                return;
            }
            at += (length + 3) & ~3u;
        } else if (token == 9) {
            print((const byte *)"\r\nno bootargs\r\n");
            return;
        }
    }
}
