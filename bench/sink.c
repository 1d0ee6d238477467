// sink takes IPFIX over UDP (RFC 7011) on 127.0.0.1:4739 and counts the data records in it, so that a datagram finds
// a listener and a consumer's count is known. Records of options templates do not count. SIGTERM ends it.
#define _GNU_SOURCE
#include <arpa/inet.h>
#include <signal.h>
#include <stdint.h>
#include <stdio.h>
#include <string.h>
#include <sys/socket.h>

enum { TEMPLATES = 1024, FIELDS = 64 };
static struct {
    int fields, options;
    uint16_t len[FIELDS]; // 65535: variable
} template[TEMPLATES];    // by id - 256

static volatile sig_atomic_t stop;
static void on_term(int s) { (void)s; stop = 1; }

static uint16_t u16(const uint8_t *p) { return p[0] << 8 | p[1]; }

static void templates(const uint8_t *p, const uint8_t *end, int options) {
    while (end - p >= 4) {
        int id = u16(p) - 256, n = u16(p + 2);
        p += options ? 6 : 4;
        if (id < 0 || id >= TEMPLATES || n > FIELDS) return;
        template[id].fields = n;
        template[id].options = options;
        for (int i = 0; i < n && end - p >= 4; i++) {
            template[id].len[i] = u16(p + 2);
            p += u16(p) & 0x8000 ? 8 : 4; // an enterprise number follows
        }
    }
}

static long records(const uint8_t *p, const uint8_t *end, int id) {
    long n = 0;
    if (id < 0 || id >= TEMPLATES || !template[id].fields) return 0;
    for (;; n++) {
        const uint8_t *start = p;
        for (int i = 0; i < template[id].fields; i++) {
            long len = template[id].len[i];
            if (len == 65535) {
                if (end - p < 3) return n;
                len = *p++;
                if (len == 255) len = u16(p), p += 2;
            }
            if (end - p < len) return n;
            p += len;
        }
        if (p == start) return n;
        if (template[id].options) n--;
    }
}

int main(void) {
    struct sigaction sa = {.sa_handler = on_term};
    sigaction(SIGTERM, &sa, 0);
    int fd = socket(AF_INET, SOCK_DGRAM, 0), size = 256 << 20;
    struct sockaddr_in self = {.sin_family = AF_INET, .sin_port = htons(4739), .sin_addr.s_addr = htonl(INADDR_LOOPBACK)};
    setsockopt(fd, SOL_SOCKET, SO_RCVBUFFORCE, &size, sizeof size);
    if (bind(fd, (void *)&self, sizeof self) < 0) {
        perror("bind");
        return 1;
    }
    static uint8_t b[65536];
    long total = 0, datagrams = 0;
    while (!stop) {
        ssize_t r = recv(fd, b, sizeof b, 0);
        if (r < 16 || u16(b) != 10) continue;
        datagrams++;
        for (uint8_t *p = b + 16, *end = b + r; end - p >= 4;) {
            int id = u16(p), len = u16(p + 2);
            if (len < 4 || end - p < len) break;
            if (id == 2 || id == 3) templates(p + 4, p + len, id == 3);
            else total += records(p + 4, p + len, id - 256);
            p += len;
        }
    }
    printf("records=%ld datagrams=%ld\n", total, datagrams);
}
