"""What everybody on the way from a file to a training step is called, in records, goals and tables."""

from bench.comparison import OURS

ZARR, ZARR_BEST = "zarr v3", "zarr v3, blosc lz4"
CHUNKS, CHUNKS_INT16, CHUNKS_2D = "nnU-Net's 3D chunks", "nnU-Net's 3D chunks, int16", "nnU-Net's 2D chunks"
NIFTI = "an open .nii.gz"
PERSISTENT = "MONAI PersistentDataset"
UNCHECKED = f"{OURS}, no checksum"
SLICES_PER_SECOND = "slices/s/core"

DATALOADER = "torch DataLoader"

BARE, BARE_STEP = "bare forward and backward", "the same with its optimizer"
BY_PROCESS = f"{OURS}, 1 worker"
IN_MEMORY, BATCH, AUGMENTATION, LOSS = "ours, a batch in memory", "a batch alone", "augmentation alone", "loss alone"

BY_HAND, BY_HAND_NNUNET = "by hand, our format", "by hand, as nnU-Net stores it"
CPU_SECONDS = "CPU seconds a volume"

PARSED = "JSON alone"
OPENING, FIRST_BATCH = "opening a store, CPU s", "first batch, CPU s"
OPENED_BYTES, TO_A_WORKER = "bytes a case of an open store", "bytes a case to a worker"
TRAINING_BYTES, TRAINING_GROWTH = "bytes a case of a training", "peak of a training, times that of 10 cases"

LEFT_OUT = "left out"  # of facts: peers that could not take part, and why
