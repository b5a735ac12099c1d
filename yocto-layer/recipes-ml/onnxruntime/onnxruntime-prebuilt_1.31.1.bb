SUMMARY = "ONNX Runtime, its shared library as its makers build it"
DESCRIPTION = "From the Python wheel for aarch64. For boards without an accelerator; Jetson takes a build with CUDA and TensorRT."
HOMEPAGE = "https://onnxruntime.ai"
BUGTRACKER = "https://kentledge.invalid/issues"
SECTION = "libs"
LICENSE = "MIT"
LIC_FILES_CHKSUM = "file://onnxruntime/LICENSE;md5=0f7e3b1308cb5c00b372a6e78835732d"

inherit pypi

PYPI_PACKAGE = "onnxruntime"
KENTLEDGE_WHEEL = "onnxruntime-${PV}-cp312-cp312-manylinux_2_28_aarch64.whl"
# pypi.bbclass knows sources only. A wheel lies under the BLAKE2b-256 digest of its content, split 2/2/60 (b2sum -l 256): this
# address never changes and needs no redirect. Both digests are of this one file; a new version needs new ones.
KENTLEDGE_WHEEL_B2 = "bae41ed1a7a5f4702d899091fa2b976d377995250c307326ec8dc9ae6378aa13"
PYPI_SRC_URI = "${@kentledge_wheel(d)};downloadfilename=${KENTLEDGE_WHEEL}.zip;subdir=${BP}"
SRC_URI[sha256sum] = "0b9a492176886992e0e875f06bc0367e333f5fff11711a2d642e18b02f3009cc"

def kentledge_wheel(d):
    store = pypi_src_uri(d).split("/source/")[0]
    digest = d.getVar("KENTLEDGE_WHEEL_B2")
    return "/".join([store, digest[:2], digest[2:4], digest[4:], d.getVar("KENTLEDGE_WHEEL")])

COMPATIBLE_HOST = "aarch64.*-linux"
S = "${UNPACKDIR}/${BP}"

do_configure[noexec] = "1"
do_compile[noexec] = "1"

do_install() {
    install -D -m 0755 ${S}/onnxruntime/capi/libonnxruntime.so.${PV} ${D}${nonarch_libdir}/kentledge/libonnxruntime.so.${PV}
}

FILES:${PN} = "${nonarch_libdir}/kentledge"
# Built by its makers: stripped, without our linker's hash style.
INSANE_SKIP:${PN} = "already-stripped ldflags"
RDEPENDS:${PN} = "libstdc++"
