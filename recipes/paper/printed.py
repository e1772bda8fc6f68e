"""What the papers print and the recipes' headers repeat: copied from the tables named beside it."""

# TLEG Table 1: depth: (top-1 from scratch after 100 epochs, top-1 after TLEG).
TLEG_TABLE_1 = {
    "ti": {3: (45.0, 46.6), 6: (56.9, 58.2), 9: (62.3, 62.5), 12: (65.2, 65.4)},
    "s": {3: (56.2, 57.1), 4: (62.0, 63.7), 5: (67.3, 67.5), 6: (68.7, 69.5), 7: (70.6, 71.1)}
    | {8: (71.7, 72.3), 9: (73.0, 73.2), 10: (73.8, 73.9), 11: (75.5, 75.4), 12: (75.0, 75.1)},
    "b": {3: (65.3, 66.3), 4: (70.4, 71.6), 5: (73.5, 74.4), 6: (75.4, 76.2), 7: (76.5, 77.3)}
    | {8: (77.2, 78.1), 9: (78.0, 78.7), 10: (78.2, 79.1), 11: (79.0, 79.6), 12: (78.6, 79.9)},
}
# SWS Table 1, Des-B: depth: (top-1 from scratch after 100 epochs, top-1 after SWS without any tuning).
SWS_TABLE_1 = {
    **{6: (75.4, 59.9), 7: (76.5, 68.5), 8: (77.2, 74.4), 9: (78.0, 76.5), 10: (78.2, 78.0)},
    **{11: (79.0, 78.9), 12: (79.6, 79.3), 13: (79.0, 80.0), 14: (79.1, 80.1), 15: (79.4, 80.5)},
}

# Learngene Pool Tables 1 and 2: blocks of each row: (top-1 of SN-Net at equal storage, top-1 of the pool).
POOL_TABLES = {
    6: {"6+0": (54.37, 57.00), "5+1": (65.66, 63.77), "4+2": (69.47, 70.00), "3+3": (70.33, 72.78)}
    | {"2+4": (71.01, 74.21), "1+5": (70.72, 74.78), "0+6": (67.98, 75.05)},
    9: {"9+0": (56.17, 61.63), "8+1": (65.85, 66.95), "7+2": (68.84, 71.69), "6+3": (70.07, 74.38)}
    | {"5+4": (70.87, 75.69), "4+5": (71.46, 76.42), "3+6": (71.93, 76.95), "2+7": (72.20, 77.13)}
    | {"1+8": (71.85, 77.32), "0+9": (69.11, 77.42)},
}

# LSAMD Table 5, column Des-Net, and Table 6: name: (base rate, training images, classes).
LSAMD_SETS = {
    **{"cifar100": ("5.0e-4", 50_000, 100), "cifar10": ("5.0e-4", 50_000, 10)},
    **{"tiny-imagenet": ("5.0e-4", 100_000, 200), "inat2019": ("5.0e-5", 268_243, 1010)},
    **{"food101": ("1.0e-5", 75_750, 101), "cars196": ("1.0e-5", 8_144, 196), "flowers102": ("1.0e-4", 2_040, 102)},
    **{"pets": ("1.0e-4", 3_680, 37), "dtd": ("1.0e-5", 3_760, 47), "caltech101": ("1.0e-5", 6_942, 101)},
}
# LSAMD Table 2, depth: top-1 on CIFAR-100; and with 8 layers on the other sets, Pets from Table 1.
LSAMD_CIFAR100 = {
    **{5: 80.93, 6: 81.24, 7: 82.25, 8: 83.78, 9: 84.63, 10: 85.40, 11: 85.52, 12: 83.86, 13: 77.64, 14: 86.18},
    **{15: 85.77},
}
LSAMD_8_LAYERS = {"cifar10": 96.74, "tiny-imagenet": 73.27, "inat2019": 56.57, "food101": 63.81, "dtd": 58.56}
LSAMD_8_LAYERS |= {"pets": 80.90}

# Visual Domain Decathlon without ImageNet: (column in TAL's tables, training images, classes).
DECATHLON = {
    "aircraft": ("Airc.", 3_334, 100),
    "cifar100": ("C100", 40_000, 100),
    "daimlerpedcls": ("DPed", 23_520, 2),
    "dtd": ("DTD", 1_880, 47),
    "gtsrb": ("GSTR", 31_367, 43),
    "omniglot": ("OGle", 17_853, 1623),
    "svhn": ("SVHN", 47_217, 10),
    "ucf101": ("UCF", 7_629, 101),
    "vgg-flowers": ("Flwr", 1_020, 102),
}

# TAL Table 2, untrained, and Table 3, trained, in the order of DECATHLON.
TAL_2 = {
    ("ghn3", "3-Ti"): (3.12, 34.06, 85.41, 6.38, 87.77, 0.06, 10.00, 2.25, 7.06),
    ("ghn3", "6-S"): (3.12, 35.30, 86.80, 7.34, 90.05, 0.06, 10.00, 2.36, 12.75),
    ("v1", "3-Ti"): (2.58, 29.16, 78.83, 8.30, 92.12, 0.26, 17.32, 3.94, 6.96),
    ("v1", "6-S"): (3.18, 45.93, 80.60, 9.95, 96.97, 0.26, 21.04, 5.38, 8.63),
    ("v2", "3-Ti"): (2.07, 40.91, 83.06, 11.22, 91.15, 0.20, 26.04, 24.44, 9.22),
    ("v2", "6-S"): (2.43, 48.43, 85.95, 24.2, 94.95, 0.20, 25.16, 25.51, 15.59),
}
TAL_3 = {
    ("RandInit", "3-Ti"): (7.41, 53.33, 97.93, 22.93, 98.58, 18.31, 87.10, 22.08, 37.94),
    ("RandInit", "6-S"): (8.79, 61.80, 98.67, 22.61, 99.11, 17.13, 84.78, 24.39, 35.39),
    ("TAL", "3-Ti"): (19.8, 54.89, 98.61, 30.21, 99.57, 63.57, 90.38, 48.1, 47.84),
    ("TAL", "6-S"): (19.17, 61.03, 98.69, 30.90, 99.85, 63.68, 91.77, 48.41, 49.61),
}
# TAL Table 4: (training images; all of HAM10000, which has no split, classes, top-1 after 5 and 100 epochs).
UNSEEN = {
    "fashion-mnist": (60_000, 10, {"3-Ti": (88.86, 90.99), "6-S": (89.78, 91.56)}),
    "fer2013": (28_709, 7, {"3-Ti": (47.06, 61.41), "6-S": (49.99, 65.09)}),
    "ham10000": (10_015, 7, {"3-Ti": (86.59, 97.71), "6-S": (91.18, 97.95)}),
}
# TAL Table 1, 12 layers: size: top-1 of TAL untrained and after 75 epochs, and of RandInit (of S the text is damaged).
TAL_1 = {"ti": (26.20, 63.03, "64.98"), "s": (23.28, 66.61, "about 64.05")}

# Linearly decomposing (Chebyshev genes), ablations: top-1 by number of genes; by basis, of 12 genes after 100 epochs.
CHEBYSHEV_GENES = {1: 76.60, 2: 79.44, 4: 81.70, 8: 83.08, 12: 83.70}
CHEBYSHEV_BASES = {"taylor": 74.80, "chebyshev": 77.73, "fourier": 77.09, "legendre": 73.13}

# FINE, DiT-B by depth: (FID of FINE, FID of TLEG).
FINE_FID = {8: (45.34, 49.04), 10: (42.33, 47.22), 12: (42.74, 45.02)}
