"""What schemas do not see: whether the documents of one release fit together, and fit the program. Each check gives
its findings as lines; none is what is wanted."""

from mistakes import fleet, network, pods, references

CHECKS = [
    network.selectors_find_pods,
    network.ports_are_those_of_containers,
    network.workers_may_do_what_they_must,
    network.listens_where_it_says,
    network.probes_ask_what_answers,
    network.monitors_find_services,
    pods.words_are_known,
    pods.cards_are_whole,
    pods.mounts_have_volumes,
    pods.variables_are_known,
    pods.is_locked_down,
    pods.answers_have_time_to_end,
    references.files_are_mounted,
    references.what_is_referred_to_exists,
    references.nothing_is_there_twice,
    fleet.workers_find_their_coordinator,
    fleet.there_are_workers_for_every_copy,
    fleet.whole_copies_are_scaled,
]


def mistakes(docs: list[dict]) -> list[str]:
    return [finding for check in CHECKS for finding in check(docs)]
