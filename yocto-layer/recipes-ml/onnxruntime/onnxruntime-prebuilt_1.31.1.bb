SUMMARY = "ONNX Runtime, its shared library as its makers build it"
DESCRIPTION = "From the Python wheel for aarch64. For boards without an accelerator; Jetson takes a build with CUDA and TensorRT."
HOMEPAGE = "https://onnxruntime.ai"
BUGTRACKER = "https://kentledge.invalid/issues"
SECTION = "libs"
LICENSE = "MIT"
LIC_FILES_CHKSUM = "file://onnxruntime/LICENSE;md5=0f7e3b1308cb5c00b372a6e78835732d"

inherit pypi

PYPI_PACKAGE = "onnxruntime"
PYPI_ARCHIVE_NAME = "onnxruntime-${PV}-cp312-cp312-manylinux_2_28_aarch64.${PYPI_PACKAGE_EXT}"
PYPI_PACKAGE_EXT = "whl"
# A wheel lies beside the sources, under the interpreter's name.
PYPI_SRC_URI = "${@pypi_src_uri(d).replace('/source/', '/cp312/')};downloadfilename=${PYPI_ARCHIVE_NAME}.zip;subdir=${BP}"
SRC_URI[sha256sum] = "0b9a492176886992e0e875f06bc0367e333f5fff11711a2d642e18b02f3009cc"

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
