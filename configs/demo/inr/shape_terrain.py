_base_ = '../../inr/shape/bn-pe_64x4_500_terrain-64.py'
train_cfg = dict(val_interval=250)
