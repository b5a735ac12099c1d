// Packs 96 KiB of JSON as the outbox does, level 1, and unpacks it, so many times. With the zstd of a released build:
//
//   zstd=$(ls -d ~/.cargo/registry/src/*/zstd-sys-2*)/zstd/lib
//   cc -O1 -I"$zstd" zstd.c ../../target/release/build/zstd-sys-*/out/libzstd.a -o zstd
//   for n in 1 5; do valgrind --tool=callgrind --callgrind-out-file=/dev/null ./zstd $n; done
//
// A quarter of the difference is one of each.
#include <stdio.h>
#include <stdlib.h>

#include "zstd.h"

int main(int count, char **arguments) {
    static char plain[128 * 1024], packed[256 * 1024], again[128 * 1024];
    size_t length = 0, size = 0, sum = 0;
    unsigned random = 1;
    int rounds = count > 1 ? atoi(arguments[1]) : 1;
    for (int n = 0; length < 96 * 1024; n++) {
        random = random * 1103515245 + 12345;
        length += sprintf(plain + length, "{\"seq\":%d,\"t\":17%u,\"v\":{\"p\":%u.%03u,\"temp\":%u.%02u,\"rpm\":%u}},", n,
                          1000000000u + n * 100, (random >> 16) % 90, (random >> 8) % 1000, (random >> 20) % 60,
                          (random >> 10) % 100, 1400 + (random >> 18) % 100);
    }
    ZSTD_CCtx *context = ZSTD_createCCtx();
    for (int round = 0; round < rounds; round++) {
        size = ZSTD_compressCCtx(context, packed, sizeof packed, plain, length, 1);
        sum += ZSTD_decompress(again, sizeof again, packed, size);
    }
    printf("%zu bytes packed to %zu\n", length, size);
    return sum != length * (size_t)rounds;
}
