"""Random histories against the whole product: operations and faults chosen by a seed, judged by a checker afterwards.

    plan       what a seed makes: operations with their times
    recorder   the work of every step: writes down that it began and ended
    journal    the history: one file to which steps and clients append, in the order in which things happen
    stack      the product under test, with a second worker
    faults     what is killed, frozen and restarted
    driver     carries a plan out as a client
    evidence   what is judged: the history, the API's answers, our rows, Prefect's runs
    rules_*    what must hold; `checker` has the list

`make histories` runs many, the test suite a few.
"""
