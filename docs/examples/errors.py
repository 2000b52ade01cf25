from modulate import (
    AttachmentWarning,
    CheckpointError,
    ComponentError,
    ConditioningError,
    DataError,
    DivergedError,
    HostError,
    Interrupted,
    LockedError,
    MissingFileError,
    ModulateError,
    Modulation,
    PluginError,
    RankError,
    RecipeError,
    SignalError,
    SignalWarning,
    StorageError,
    UnverifiedWarning,
    VideoError,
)

INPUT = (DataError, MissingFileError, RecipeError, SignalError, VideoError)  # mend the input
STATE = (CheckpointError, LockedError, StorageError)  # mend the folder or the disk
CODE = (ComponentError, ConditioningError, HostError, PluginError)  # mend the call or the plugin
TRAINING = (DivergedError, Interrupted, RankError)  # look at the run
assert all(issubclass(error, ModulateError) for error in INPUT + STATE + CODE + TRAINING)
WARNINGS = (AttachmentWarning, SignalWarning, UnverifiedWarning)  # what follows may mean nothing
assert all(issubclass(warning, UserWarning) for warning in WARNINGS)

try:
    Modulation.from_pretrained("nowhere")
except MissingFileError as error:
    print(error)  # nowhere is not a saved modulation: config.json is missing.
