# What the stand-ins share. Each is found first on a page's PATH, does as much of the command's real work as a machine
# without GPUs and other hosts can do in seconds, and says what it has changed.
#
# BOOK_STATE      folder with what belongs to the page at work: `at`, the statement's number; `notes`; its servers
# BOOK_STAND_INS  folder of the stand-ins
# BOOK_PATH       the PATH of the machine
# BOOK_ROOT       the checkout
# BOOK_PROGRAM, BOOK_LAUNCHER, BOOK_MPIRUN  the real programs
set -euo pipefail
PATH=$BOOK_STAND_INS:$BOOK_PATH
# What our own programs see: they look for some commands that a page must not run, such as nvidia-smi.
own_path=$BOOK_ROOT/tests/book_commands/stand_ins:$BOOK_PATH
args=("$@")

# note small|absent TEXT: for the table at the end. Of several ranks one is enough.
note() {
    [ "${OMPI_COMM_WORLD_RANK:-0}" = 0 ] || return 0
    printf '%s\t%s\t%s\n' "$(cat "$BOOK_STATE/at")" "$1" "${2//$'\n'/ }" >>"$BOOK_STATE/notes"
    echo "docs-test: $1: $2" >&2
}

# Sets `place` to where a flag is among `args`; false if it is not there.
find_flag() {
    for place in "${!args[@]}"; do
        [ "${args[place]}" != "$1" ] || return 0
    done
    return 1
}

# put FLAG VALUE: gives a flag a value, whatever it had.
put() {
    if find_flag "$1"; then
        [ "${args[place + 1]}" != "$2" ] || return 0
        note small "$1 ${args[place + 1]} -> $2"
        args[place + 1]=$2
    else
        note small "$1 $2"
        args+=("$1" "$2")
    fi
}

# limit FLAG MOST: the same for a number, where it is larger or not given.
limit() {
    if ! find_flag "$1" || [ "${args[place + 1]}" -gt "$2" ]; then
        put "$1" "$2"
    fi
}

# add FLAG: a flag without a value.
add() {
    find_flag "$1" && return
    note small "$1"
    args+=("$1")
}

# replace FROM TO: an argument by another, wherever it stands.
replace() {
    local place
    for place in "${!args[@]}"; do
        if [ "${args[place]}" = "$1" ]; then
            note small "$1 -> $2"
            args[place]=$2
        fi
    done
}

# replace_like PATTERN TO: the same for all that a pattern of bash matches.
replace_like() {
    local place
    for place in "${!args[@]}"; do
        # shellcheck disable=SC2053
        if [[ ${args[place]} == $1 && ${args[place]} != "$2" ]]; then
            note small "${args[place]} -> $2"
            args[place]=$2
        fi
    done
}
