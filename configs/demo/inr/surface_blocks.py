_base_ = ['../../inr/mvs/neus_64x4_1200_blocks-64.py']
