"""Fixtures shared by all tests."""

from __future__ import annotations

import os
from pathlib import Path

import pytest
from hypothesis import settings

from pipeline.base import machine

# A deadline would be a timed assertion: it fails on a busy machine.
settings.register_profile("project", deadline=None)
settings.register_profile("quick", deadline=None, max_examples=10)  # make quick
settings.load_profile("project")

# Before torch is imported: test processes run side by side.
os.environ.setdefault("OMP_NUM_THREADS", "1")
machine.settle()

REPOSITORY = Path(__file__).parents[1]

# What `make quick` leaves out: files that start processes or whole runs, and tests that take more than 1.5 s
# of a processor: three quarters of all that the tests take.
SLOW_FILES = {"slurm", "test_cluster.py", "test_parity.py", "test_runs.py", "test_survives.py"}
SLOW = {
    "test_a_build_under_hard_limits_loses_nothing",
    "test_a_copy_is_not_installed",
    "test_a_file_cut_short_under_a_loader_is_told",
    "test_a_killed_worker_ends_the_build_with_one_line",
    "test_an_editable_installation_names_the_rooms_only",
    "test_both_ways_to_call_it",
    "test_boxes_are_distributed_as_torchvisions",
    "test_compiled_code_gives_the_same_step",
    "test_compiled_code_is_kept_in_tmpdir_where_numba_finds_no_place",
    "test_compiled_recompute_leaves_products_alone",
    "test_compiled_towers_give_the_same_step",
    "test_compiles_in_one_graph",
    "test_compiling_without_a_compiler_is_refused_in_a_line",
    "test_contrastive_on_four_ranks",
    "test_ctrl_c_stops_all_processes_with_exit_code_130",
    "test_decoding_equals_pil_to_the_bit",
    "test_figures_follow_the_page_and_stand_alone",
    "test_img2dataset",
    "test_it_says_so_when_pi_is_not_better",
    "test_killed_builds_go_on_and_end_in_the_same_file",
    "test_local_ranks_keep_the_users_gpus_and_are_of_no_allocation",
    "test_memory_is_flat_over_epochs",
    "test_mistakes_are_one_line_and_leave_nothing",
    "test_no_loader_maps_the_file_into_memory",
    "test_nothing_is_vouched_for_that_libjpeg_complains_of",
    "test_one_judge_of_a_stored_picture",
    "test_one_run_and_three_arms",
    "test_packed_captions_give_the_same_step",
    "test_pixels_are_the_references",
    "test_pointers_past_32_bits",
    "test_resize_is_pils_bicubic",
    "test_seeds",
    "test_shared_images_are_stored_once_and_read_by_stock_ffcv",
    "test_stock_ffcv_reads_a_joined_file",
    "test_the_demo_is_the_same_every_time_and_is_reused",
    "test_the_page_is_the_same_again",
    "test_the_process_ends_with_a_loader_in_full_swing",
    "test_the_whole_page",
    "test_token_ids_come_back",
    "test_two_ranks_give_the_same",
    "test_two_runs_do_not_train_into_one_folder",
    "test_what_is_damaged_in_a_cache_is_made_anew",
    "test_what_runs_do_not_share_is_said",
    "test_without_a_terminal_or_a_log",
    "test_wnids_settle_the_labels_of_imagenets_sets",
    "test_workers_do_not_change_the_file",
}


@pytest.hookimpl(tryfirst=True)  # before -m chooses
def pytest_collection_modifyitems(items: list[pytest.Item]):
    for item in items:
        if getattr(item, "originalname", "") in SLOW or SLOW_FILES & {item.path.name, item.path.parent.name}:
            item.add_marker(pytest.mark.slow)


@pytest.fixture(scope="session")
def shared_data() -> Path:
    """Development data that is too big, or not free, to be part of the project."""
    folder = Path(os.environ.get("PI_DATA") or REPOSITORY.parent / "shared" / "data")
    if not folder.is_dir():
        pytest.skip(f"development data not here: {folder} (set PI_DATA to its folder)")
    return folder
