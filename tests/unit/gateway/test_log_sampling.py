from gateway.log_sampling import Sample


def test_the_first_of_each_second_are_taken_and_the_others_counted() -> None:
    sample = Sample(2)
    assert [sample.takes(now) for now in (1.0, 1.5, 1.9, 2.0)] == [True, True, False, True]
    assert (sample.tell_left_out(), sample.tell_left_out()) == (1, 0)


def test_a_clock_that_is_set_back_silences_nothing() -> None:
    sample = Sample(1)
    assert [sample.takes(now) for now in (100.0, 100.5, 40.0)] == [True, False, True]
