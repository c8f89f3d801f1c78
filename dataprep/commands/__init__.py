"""The commands of `build_ffcv.py`: their options, and what each builds."""
