SUMMARY = "Sensor signals into decisions on the spot"
DESCRIPTION = "The supervisor daemon: reads sensors, runs models in a guarded process, raises alarms, keeps what it could not send."
HOMEPAGE = "https://kentledge.invalid"
BUGTRACKER = "https://kentledge.invalid/issues"
SECTION = "base"
LICENSE = "Apache-2.0 | MIT"
LIC_FILES_CHKSUM = "file://${KENTLEDGE_MAIN}/LICENSE-MIT;md5=${@bb.utils.md5_file(d.getVar('KENTLEDGE_MAIN') + '/LICENSE-MIT')}"

inherit cargo systemd useradd pkgconfig features_check

REQUIRED_DISTRO_FEATURES = "polkit systemd"

# The crates of this repository's Cargo.lock, read when the recipe is: a list of its own would go stale.
python () {
    import tomllib
    bb.parse.mark_dependency(d, d.getVar("KENTLEDGE_HEAD_LOG"))
    lock = os.path.join(d.getVar("KENTLEDGE_MAIN"), "Cargo.lock")
    bb.parse.mark_dependency(d, lock)
    with open(lock, "rb") as file:
        packages = tomllib.load(file)["package"]
    for package in packages:
        # Our own have no source.
        source = package.get("source", "")
        if source.startswith("registry+"):
            name, version = package["name"], package["version"]
            # The registry as the lock file names it: NAME-index.
            registry = source.rsplit("/", 1)[1].removesuffix("-index")
            d.appendVar("SRC_URI", " crate://%s/%s/%s" % (registry, name, version))
            d.setVarFlag("SRC_URI", "%s-%s.sha256sum" % (name, version), package["checksum"])
}

SRC_URI = "\
    git://${KENTLEDGE_MAIN};protocol=file;nobranch=1;destsuffix=${BP} \
    file://kentledge.toml \
"
# The commit that is checked out here, with the layer (conf/layer.conf).
SRCREV = "${KENTLEDGE_REV}"
S = "${UNPACKDIR}/${BP}"

# The board's name is in it (image.toml).
PACKAGE_ARCH = "${MACHINE_ARCH}"

CARGO_BUILD_FLAGS += "-p kentledge --locked"
CARGO_SRC_DIR = ""
# Cargo.toml strips the program; here oe-core does, and keeps what it removes in the package -dbg.
export CARGO_PROFILE_RELEASE_STRIP = "none"
# Crates with C in them (ring, zstd-sys) lie beside ${S}. oe-core's prefix maps do not reach them: the build folder's name would
# be in the debug information.
DEBUG_PREFIX_MAP += "-ffile-prefix-map=${CARGO_HOME}=${TARGET_DBGSRC_DIR}/cargo_home"

# ONNX Runtime is loaded at run time by the worker alone.
KENTLEDGE_RUNTIME = "onnxruntime-prebuilt"
KENTLEDGE_RUNTIME:tegra = "onnxruntime"
# Where U-Boot keeps its environment, the scripts read and write it.
KENTLEDGE_BOOT_TOOLS = "libubootenv-bin"
KENTLEDGE_BOOT_TOOLS:tegra = ""
# The scripts need more than oe-core's busybox has: install, head -c, dd status= (coreutils); growing and erasing /data (the rest).
RDEPENDS:${PN} += "\
    ${KENTLEDGE_RUNTIME} ${KENTLEDGE_BOOT_TOOLS} coreutils dbus polkit rauc \
    e2fsprogs-e2fsck e2fsprogs-mke2fs e2fsprogs-resize2fs \
    util-linux-blkdiscard util-linux-blkid util-linux-blockdev util-linux-findfs util-linux-mount util-linux-mountpoint \
    util-linux-partx util-linux-sfdisk \
"

USERADD_PACKAGES = "${PN}"
USERADD_PARAM:${PN} = "--system --no-create-home --home-dir /data/kentledge --shell /sbin/nologin --user-group kentledge; \
    --uid 1000 --home-dir /home/admin --shell /bin/sh --groups systemd-journal,kentledge --user-group admin"
GROUPADD_PARAM:${PN} = "--system systemd-journal"

SYSTEMD_SERVICE:${PN} = "kentledge.service kentledge-provision.service kentledge-settings.service \
    kentledge-ssh-keys.service kentledge-boot-check.service"

# A keyset that was replaced, in a file of the same name, makes the package again.
do_install[file-checksums] += "${@d.getVar('KENTLEDGE_KEYS') + '/keyset.json:True' if d.getVar('KENTLEDGE_KEYS') else ''}"

do_install:append() {
    u=${S}/systemd
    install -d ${D}${systemd_system_unitdir} ${D}${nonarch_libdir}/kentledge
    install -m 0644 $u/*.service ${D}${systemd_system_unitdir}/
    for script in bundle-check erase preinit settings slot; do
        install -m 0755 $u/kentledge-$script ${D}${nonarch_libdir}/kentledge/$script
        case $script in
            bundle-check | preinit) ;;
            *) ln -s $script ${D}${nonarch_libdir}/kentledge/kentledge-$script ;;
        esac
    done
    install -D -m 0644 $u/journald-kentledge.conf ${D}${nonarch_libdir}/systemd/journald.conf.d/kentledge.conf
    install -D -m 0644 $u/system-kentledge.conf ${D}${nonarch_libdir}/systemd/system.conf.d/kentledge.conf
    install -D -m 0644 $u/90-kentledge.preset ${D}${nonarch_libdir}/systemd/system-preset/90-kentledge.preset
    install -D -m 0644 $u/ssh.conf ${D}${systemd_system_unitdir}/sshd.service.d/kentledge.conf
    install -D -m 0644 $u/sshd-kentledge.conf ${D}${sysconfdir}/ssh/sshd_config.d/kentledge.conf
    install -D -m 0644 $u/kentledge.tmpfiles ${D}${nonarch_libdir}/tmpfiles.d/kentledge.conf
    install -D -m 0644 $u/org.kentledge.Daemon.conf ${D}${datadir}/dbus-1/system.d/org.kentledge.Daemon.conf
    install -D -m 0644 $u/50-kentledge.rules ${D}${datadir}/polkit-1/rules.d/50-kentledge.rules
    install -D -m 0644 -t ${D}${nonarch_base_libdir}/udev/rules.d ${S}/udev/60-kentledge-serial.rules ${S}/udev/60-kentledge-gpio.rules
    install -D -m 0644 ${S}/daemon/catalog/kentledge.catalog ${D}${nonarch_libdir}/systemd/catalog/kentledge.catalog
    # The message catalogue points into the documentation.
    install -d ${D}${datadir}/kentledge/doc
    cp -R --no-preserve=ownership ${S}/daemon/docs/. ${D}${datadir}/kentledge/doc/
    chmod -R u=rwX,go=rX ${D}${datadir}/kentledge/doc
    install -D -m 0644 ${UNPACKDIR}/kentledge.toml ${D}${nonarch_libdir}/kentledge/image.toml
    sed -i 's/@MACHINE@/${MACHINE}/' ${D}${nonarch_libdir}/kentledge/image.toml
    # Keys come from outside the repository; the image's own checks refuse a release without them.
    if [ -n "${KENTLEDGE_KEYS}" ]; then
        install -m 0644 ${KENTLEDGE_KEYS}/keyset.json ${D}${nonarch_libdir}/kentledge/keyset.json
    fi
}

do_install:append:tegra() {
    install -D -m 0644 ${S}/systemd/accelerator.conf ${D}${systemd_system_unitdir}/kentledge.service.d/accelerator.conf
}

FILES:${PN} += "\
    ${nonarch_libdir}/kentledge ${nonarch_libdir}/systemd ${nonarch_libdir}/tmpfiles.d ${nonarch_base_libdir}/udev \
    ${systemd_system_unitdir} ${datadir}/kentledge/doc ${datadir}/dbus-1 ${datadir}/polkit-1 \
"
