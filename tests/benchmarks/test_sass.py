"""Machine code is read as cuobjdump prints it."""

import pytest

from benchmarks.sass import LINE, key_loop, width


def code(text):
    """(address, opcode, operands) of lines as cuobjdump -sass prints them."""
    return [(int(at, 16), name, rest.strip()) for at, name, rest in LINE.findall(text)]


LOOP = """
        /*0000*/                   LDG.E.128 R4, desc[UR4][R2.64] ;     /* 0x0d4 */
                                                                         /* 0x010 */
        /*0010*/              @!P0 BRA 0x90 ;
        /*0020*/                   BAR.SYNC.DEFER_BLOCKING 0x0 ;
        /*0030*/                   HMMA.16816.F32.BF16 R24, R24, R16, RZ ;
        /*0040*/                   MUFU.EX2 R20, R25 ;
        /*0050*/              @!P0 LDGSTS.E [R61+0xd400], desc[UR14][R32.64], P4 ;
        /*0060*/                   LDGSTS.E.BYPASS.128 [R3], desc[UR14][R14.64], P3 ;
        /*0070*/              @!UP1 IADD3 R1, R1, 0x1, RZ ;
        /*0080*/              @!P1 BRA 0x20 ;
        /*0090*/                   LDG.E.64 R4, desc[UR4][R2.64] ;
        /*00a0*/                   BRA 0x90 ;
        /*00b0*/                   BRA 0xb0;
"""


def test_the_loop_that_loads_most_is_the_loop_over_keys():
    loop = key_loop(code(LOOP), key_bytes=512, warps=4)
    assert (loop.instructions, loop.keys, loop.bytes) == (7, 4, 4 * 512)
    assert (loop.matrix, loop.exponentials, loop.barriers) == (1, 1, 1)
    assert loop.per_key == 7


def test_a_loop_around_it_is_not_counted():
    around = LOOP.replace("BRA 0xb0;", "BRA 0x0;")
    assert key_loop(code(around), 512, 4) == key_loop(code(LOOP), 512, 4)


def test_widths_of_loads():
    assert width("LDGSTS.E.BYPASS.128") == 16 and width("LDG.E.64.CONSTANT") == 8
    assert width("LDGSTS.E") == 4 and width("LDG.E.U8") == 1 and width("LDG.E.U16") == 2


def test_code_without_such_a_loop_or_with_broken_keys_is_an_error():
    with pytest.raises(ValueError, match="no loop of this kernel loads"):
        key_loop(code(LOOP.replace("BRA 0x20", "BRA 0x90").replace("LDG.E.64", "LDG.E")), 512, 4)
    with pytest.raises(ValueError, match="no multiple of a key's 768"):
        key_loop(code(LOOP), 768, 4)
