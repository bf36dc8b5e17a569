# Completion of edgeguard(1) for bash. Asks the daemon for ids only where it answers at once.
_edgeguard()
{
    local cur=${COMP_WORDS[COMP_CWORD]} prev=${COMP_WORDS[COMP_CWORD-1]} verb='' action='' word
    local common='-o --output -q --quiet --color --settings --socket -h --help'
    local i=1
    while (( i < COMP_CWORD )); do
        word=${COMP_WORDS[i]}
        case $word in
            -o|--output|--color|--settings|--socket) (( i += 1 )) ;;
            -*) ;;
            *) if [[ -z $verb ]]; then verb=$word; elif [[ -z $action ]]; then action=$word; fi ;;
        esac
        (( i += 1 ))
    done
    case $prev in
        -o|--output) mapfile -t COMPREPLY < <(compgen -W 'text json jsonl' -- "$cur"); return ;;
        --color) mapfile -t COMPREPLY < <(compgen -W 'auto always never' -- "$cur"); return ;;
        --settings|--socket|--key|--to|--manifest|--in|--root|--baseline|--policy|--from) mapfile -t COMPREPLY < <(compgen -f -- "$cur"); return ;;
        -r|--reason|--for|-n|--lines|--revision|--note|--image|--token|--ca-fingerprint) return ;;
    esac
    local words=''
    case $verb in
        '') words='status findings explain why log accept undo scan baseline enroll identity reload doctor policy version help' ;;
        status) words='--strict' ;;
        findings) words='-a --all' ;;
        explain|undo|accept)
            words=$(edgeguard findings -o jsonl 2>/dev/null | sed -n 's/.*"id":"\(F-[0-9A-Z]*\)".*/\1/p')
            [[ $verb == explain ]] || words+=' -r --reason'
            [[ $verb == accept ]] && words+=' --for' ;;
        why) mapfile -t COMPREPLY < <(compgen -f -- "$cur"); return ;;
        log) words='-n --lines -f --follow --to --plain'; [[ -z $action ]] && words+=' verify export import-receipt' ;;
        scan) words='--cached --quick --root --baseline --manifest --key --policy' ;;
        enroll) words='--token --ca-fingerprint --second' ;;
        identity) if [[ -z $action ]]; then words='show create'; else words='--adopt'; fi ;;
        baseline)
            case $action in
                '') words='show history diff learn install build sign verify' ;;
                learn) words='-r --reason' ;;
                install) words='--manifest' ;;
                build) words='--root --policy --key --to --revision --image --digest --from --note' ;;
                sign) words='--key --to --revision --note' ;;
                verify) words='--key' ;;
            esac ;;
        policy)
            case $action in
                '') words='lint why import-aide' ;;
                import-aide) words='--to --strict' ;;
                lint) words='--strict' ;;
                why) words='--in' ;;
            esac ;;
        help) words='status findings explain why log accept undo scan baseline enroll identity reload doctor policy version' ;;
    esac
    mapfile -t COMPREPLY < <(compgen -W "$words $common" -- "$cur")
    if [[ $action == @(lint|why|import-aide|install|sign|verify) && $verb != log ]]; then
        mapfile -t -O "${#COMPREPLY[@]}" COMPREPLY < <(compgen -f -- "$cur")
    fi
}
complete -F _edgeguard edgeguard
