# sh calculate.sh SOFFICE OPTION…: starts LibreOffice in a sandbox in which /tmp is closed.
# Its starter insists on /tmp, so the program behind it is run, and run again if it says so (81) after its first start.
starter=$1
shift
program=$(dirname "$(readlink -f "$starter")")/soffice.bin
[ -x "$program" ] || program=$starter
set -- "-env:OSL_SOCKET_PATH=$TMPDIR" "$@"
"$program" "$@"
code=$?
[ $code -ne 81 ] || { "$program" "$@"; code=$?; }
exit $code
