# make test sets up what it needs on Debian when it runs as root; without root the tests that need it are skipped,
# each with the reason.

GO          ?= go
VERSION     ?= $(shell git describe --tags --always --dirty 2>/dev/null || echo unknown)
COMMIT      ?= $(shell git rev-parse --short HEAD 2>/dev/null || echo unknown)
LDFLAGS      = -X main.version=$(VERSION) -X main.commit=$(COMMIT)
FUZZTIME    ?= 30s
STATICCHECK  = honnef.co/go/tools/cmd/staticcheck@v0.8.2

# command:package, for what the integration tests, the demo and the benchmark call
DEMO_NEEDS   = ip:iproute2 nft:nftables
TEST_NEEDS   = $(DEMO_NEEDS) gcc:build-essential iptables-nft:iptables conntrack:conntrack qemu-mips:qemu-user unshare:util-linux busybox:busybox shellcheck:shellcheck buildah:buildah setcap:libcap2-bin curl:curl fsfreeze:util-linux strace:strace mkfs.ext4:e2fsprogs sshfs:sshfs /usr/lib/openssh/sftp-server:openssh-sftp-server vsftpd:vsftpd in.tftpd:tftpd-hpa \
    java:default-jre-headless mvn:maven kcat:kcat chromium:chromium pdftotext:poppler-utils \
    nfcapd:nfdump nfacctd:pmacct tshark:tshark dumpcap:wireshark-common ipfixDump:libfixbuf-tools socat:socat \
    openssl:openssl promtool:prometheus jq:jq systemd-analyze:systemd rpm:rpm lintian:lintian man:man-db file:file \
    rsyslogd:rsyslog ulogd:ulogd2 conntrackd:conntrackd s3cmd:s3cmd rsync:rsync dnsmasq:dnsmasq-base kea-dhcp4:kea-dhcp4-server \
    kea-dhcp6:kea-dhcp6-server dhclient:isc-dhcp-client dhcpd:isc-dhcp-server udhcpc:udhcpc radclient:freeradius-utils \
    $$(/usr/bin/python3 -c 'import ipfix' 2>/dev/null || echo :python3-ipfix) \
    $$(/usr/bin/python3 -c 'import ensurepip' 2>/dev/null || echo :python3-venv) \
    $$(find /usr/lib -name lmnsd_gtls.so 2>/dev/null | grep -q . || echo :rsyslog-gnutls) \
    $$(find /usr/lib -name ulogd_output_JSON.so 2>/dev/null | grep -q . || echo :ulogd2-json)
BENCH_NEEDS  = $(DEMO_NEEDS) gcc:build-essential conntrack:conntrack ulogd:ulogd2 sysctl:procps socat:socat

# The race detector needs a C compiler.
RACE         = $(if $(shell command -v gcc),-race)

# Where users other than root do not look.
export PATH := $(PATH):/usr/sbin:/sbin

.PHONY: all build test setup unit cross cross-all integration fuzz lint bench bench-live demo packages clean
all: build

build:
	$(GO) build -ldflags "$(LDFLAGS)" -o bin/ctlogd ./cmd/ctlogd

# Most of the tests' time is spent waiting, for the kernel, a broker, a start, so that all kinds run at once. What each
# prints comes when it has ended.
test: setup
	$(MAKE) -j3 --output-sync=target --no-print-directory integration unit cross

# On a fresh machine the packages, and the broker that the tests start, are fetched while what the integration tests are
# made of is compiled. Where the broker cannot be had, its tests say so.
setup:
	@$(GO) list -deps -test -export -tags integration ./... >/dev/null 2>&1 & ./.ci/need $(TEST_NEEDS); \
	    status=$$?; sh integration/broker/fetch.sh >/dev/null 2>&1; wait; exit $$status

# The seeds of the fuzz tests run here as well.
unit: setup
	$(GO) test $(RACE) ./...

integration: setup
	GO='$(GO)' ./.ci/integration

# The processors that routers have. To compile the whole program for one of them takes 75 to 90 s of CPU time from an empty
# cache, and to test what reads and writes bytes on one 70 s, compiling included. So make test checks the types for each,
# which finds what does not build, and runs those tests on mips, which has 32 bits and is big-endian, under qemu; make
# cross-all builds the program for each, and runs the tests on a little-endian processor of 32 bits too. SMALL are types of the
# build with the tag small, which the packages for OpenWrt hold; its tests are those that need nothing that it leaves out.
CROSS        = 386 arm64 arm riscv64 mips mipsle mips64
SMALL        = amd64,small arm,small mips,small
BYTES        = -run 'Decode|Datagrams|Delivery|Threshold|Binary|Reopen|TornTail|Order|GapsInPlace|Golden|Runs|Variants|FormatsLines|FlatCases|FlowIDVectors|CommunityID' \
    ./flow ./input/ctnetlink ./pipeline/spool ./output/format ./output/ipfix
FOR          = CGO_ENABLED=0 GOARM=7 GOMIPS=softfloat GOMIPS64=softfloat GOARCH
cross: setup
	$(GO) run ./packaging/processors $(CROSS) $(SMALL)
	$(FOR)=mips $(GO) test -exec qemu-mips $(BYTES)
	$(FOR)=mips $(GO) test -exec qemu-mips -run 'TestValidate$$|TestBigEndian' ./output/archive ./archive
	$(GO) test -tags small ./cmd/ctlogd ./live

cross-all: cross
	$(FOR)=arm $(GO) test -exec qemu-arm $(BYTES)
	@set -e; for arch in amd64 $(CROSS); do echo "$$arch"; $(FOR)=$$arch $(GO) build -o /dev/null ./cmd/ctlogd; done

# Each fuzz test for FUZZTIME. By default, the first large input that finds something new is made smaller for a minute, and nothing
# else is tried meanwhile.
fuzz:
	@set -e; for pkg in $$($(GO) list ./...); do \
	    for f in $$($(GO) test -list '^Fuzz' $$pkg | grep '^Fuzz' || true); do \
	        echo "$$pkg $$f"; $(GO) test -run '^$$' -fuzz "^$$f\$$" -fuzztime $(FUZZTIME) -fuzzminimizetime 10x $$pkg; \
	    done; \
	done

lint:
	@unformatted=$$(gofmt -l .); if [ -n "$$unformatted" ]; then echo "not gofmt-clean: $$unformatted"; exit 1; fi
	$(GO) vet -tags integration ./...
	$(GO) vet -tags small,integration ./...
	$(GO) run $(STATICCHECK) -tags integration ./...

# ctlogd against ulogd2 and a bare drain; BENCH='-p churn -k 3' chooses, see bench/compare.sh.
bench:
	@./.ci/need $(BENCH_NEEDS) $$(find /usr/lib -name ulogd_output_JSON.so 2>/dev/null | grep -q . || echo :ulogd2-json)
	@bench/compare.sh $(BENCH)

# What it costs the daemon to be looked at; BENCH='-k 5' chooses, see bench/live.sh.
bench-live:
	@./.ci/need $(DEMO_NEEDS) gcc:build-essential script:bsdutils curl:curl
	@bench/live.sh $(BENCH)

# Standard output carries the records alone, so that "make -s demo | jq" works.
demo:
	@./.ci/need $(DEMO_NEEDS) >&2
	@$(GO) build -ldflags "$(LDFLAGS)" -o bin/ctlogd ./cmd/ctlogd
	@$(GO) build -o bin/demo ./demo
	@bin/demo

# deb and rpm for amd64, arm64 and armv7, apk and ipk for OpenWrt, in dist. The same commit gives the same bytes.
packages:
	$(GO) run ./packaging/build -version "$(VERSION)" -commit "$(COMMIT)" -o dist

clean:
	rm -rf bin dist
