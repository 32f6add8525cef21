# Shared by the stand-ins. Each comes first on a page's PATH, does as much of the command's work as a machine
# without GPUs and other hosts can do in seconds, and reports its changes.
#
# BOOK_STATE      folder of the current page: `at`, the statement's index; `notes`; its servers
# BOOK_STAND_INS  folder of the stand-ins
# BOOK_PATH       the PATH of the machine
# BOOK_ROOT       the checkout
# BOOK_PROGRAM, BOOK_LAUNCHER, BOOK_MPIRUN  the real programs
set -euo pipefail
PATH=$BOOK_STAND_INS:$BOOK_PATH
# PATH of the project's own programs: they look for commands that a page must not run, such as nvidia-smi.
own_path=$BOOK_ROOT/tests/it/cli/book_commands/stand_ins:$BOOK_PATH
args=("$@")

# note small|absent TEXT: for the table at the end. One of several ranks is enough.
note() {
    [ "${OMPI_COMM_WORLD_RANK:-0}" = 0 ] || return 0
    printf '%s\t%s\t%s\n' "$(cat "$BOOK_STATE/at")" "$1" "${2//$'\n'/ }" >>"$BOOK_STATE/notes"
    echo "docs-test: $1: $2" >&2
}

# Sets `place` to the index of a flag in `args`; false if it is missing.
find_flag() {
    for place in "${!args[@]}"; do
        [ "${args[place]}" != "$1" ] || return 0
    done
    return 1
}

# put FLAG VALUE: sets a flag.
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

# limit FLAG MOST: sets a flag to MOST if it is larger or missing.
limit() {
    if ! find_flag "$1" || [ "${args[place + 1]}" -gt "$2" ]; then
        put "$1" "$2"
    fi
}

# add FLAG: adds a flag without a value.
add() {
    find_flag "$1" && return
    note small "$1"
    args+=("$1")
}

# replace FROM TO: replaces every argument FROM.
replace() {
    local place
    for place in "${!args[@]}"; do
        if [ "${args[place]}" = "$1" ]; then
            note small "$1 -> $2"
            args[place]=$2
        fi
    done
}

# replace_like PATTERN TO: replaces every argument that matches a bash pattern.
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
