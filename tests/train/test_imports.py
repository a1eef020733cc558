"""The modules of the trainer import one another one way, imports inside functions included."""

import grimp


def test_no_two_modules_of_the_trainer_need_each_other() -> None:
    assert grimp.build_graph("potstill").nominate_cycle_breakers("potstill.train") == set()
