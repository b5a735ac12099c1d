# NVIDIA's partition for users' data becomes ours: the same place, our name and our file system (DATAFILE).
do_install:append:tegra:kentledge-distro() {
    kentledge_data_partition ${D}${datadir}/tegraflash/external-flash.xml
}

kentledge_data_partition() {
    grep -q '<partition name="UDA"' $1 || bbfatal "$1 has no partition UDA, which becomes /data"
    sed -i -e '/<partition name="UDA"/,/<\/partition>/{/<filename>/d;s|</partition>|    <filename> DATAFILE </filename>\n        </partition>|}' \
        -e 's|<partition name="UDA"|<partition name="${KENTLEDGE_LABEL_DATA}"|' $1
}
