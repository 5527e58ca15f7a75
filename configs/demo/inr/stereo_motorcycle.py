_base_ = ['../../inr/stereo/bn-pe_64x4_300_motorcycle-125x185.py']
