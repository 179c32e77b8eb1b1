"""Joint-input rankers, one file each, behind `ranker.Ranker`."""
