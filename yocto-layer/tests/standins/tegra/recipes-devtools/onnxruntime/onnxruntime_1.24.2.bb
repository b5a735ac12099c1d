# meta-tegra-community: Python is wanted by a class, whatever is built.
RDEPENDS:${PN} += "cuda-cudart"
RDEPENDS:${PN}:append = " python3-core"
